"""`generate` over the static engine's steps gives transformers' own tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from src.errors import ParleyError
from src.models.generation import generate_ids
from src.models.generation_options import GenerationOptions, ModelOptions
from src.models.logits import Recorder

TEXTS = [f"{name}: Are you coming{' to dinner' * length}?" for length, name in enumerate(["Anna", "Ben"] * 4)]
OPTIONS = {
    "greedy": GenerationOptions(max_new_tokens=20),
    "nothing from 3 tokens on": GenerationOptions(max_new_tokens=3),
    "one token": GenerationOptions(max_new_tokens=1),
    "sampled": GenerationOptions(max_new_tokens=20, do_sample=True, top_k=20, temperature=0.8),
    "a stream a row": GenerationOptions(max_new_tokens=20, do_sample=True, seed=3, top_p=0.9),
    "several answers": GenerationOptions(max_new_tokens=12, do_sample=True, seed=3, num_return_sequences=3),
    "penalties": GenerationOptions(
        max_new_tokens=20, repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=4, bad_words=["a", "er"]
    ),
}


def answers(model: Any, tokenizer: Any, options: GenerationOptions, **kwargs: Any) -> torch.Tensor:
    side = "right" if model.config.is_encoder_decoder else "left"
    asked = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side=side)
    torch.manual_seed(0)
    return generate_ids(model, tokenizer, asked["input_ids"], asked["attention_mask"], options, **kwargs)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_both_engines_give_the_same_tokens(model, tokenizer, shake, options):
    shake(model)
    plain = answers(model, tokenizer, options)
    assert torch.equal(answers(model, tokenizer, replace(options, engine="static")), plain)


def test_rows_that_have_ended_are_padded(model, tokenizer, shake, monkeypatch):
    """Rows end one after another, some of them after the first look at whether all have."""
    monkeypatch.setattr("src.models.replayed.LOOK_EVERY", 4)
    shake(model, size=0.3)
    options = GenerationOptions(max_new_tokens=40, do_sample=True, seed=2, min_new_tokens=2)
    free = answers(model, tokenizer, replace(options, min_new_tokens=40))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *free[:4, 3:12:4].flatten().unique().tolist()]
    plain = answers(model, tokenizer, options)
    lengths = {int((row != tokenizer.pad_token_id).sum()) for row in plain}
    assert len(lengths) > 2
    assert max(lengths) > 4
    assert torch.equal(answers(model, tokenizer, replace(options, engine="static")), plain)


def test_the_sets_that_could_be_drawn_are_recorded(model, tokenizer, shake):
    shake(model)
    options = GenerationOptions(max_new_tokens=10, do_sample=True, seed=1, top_k=5, bad_words=["a"])
    plain, static = Recorder(), Recorder()
    answers(model, tokenizer, options, recorder=plain)
    answers(model, tokenizer, replace(options, engine="static"), recorder=static)
    assert torch.equal(plain.drawable.data, static.drawable.data)


def test_a_models_own_settings_take_an_engine(model, tokenizer):
    own = replace(ModelOptions.of(model), max_new_tokens=9)
    assert torch.equal(answers(model, tokenizer, replace(own, engine="static")), answers(model, tokenizer, own))


@pytest.mark.parametrize("other", [{"num_beams": 2}, {"stop_strings": ["."]}])
def test_what_the_engine_cannot_do_is_refused(other):
    with pytest.raises(ParleyError, match="static, which takes neither num_beams nor stop_strings"):
        GenerationOptions(engine="static", **other)
