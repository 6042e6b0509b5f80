"""A model's own generation settings beside what transformers makes of them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, pipeline
from transformers.utils import logging as transformers_logging

from src.cli import main
from src.errors import ParleyError
from src.inference.decoding import describe, with_changes, with_preset
from src.models.generation import generate_ids
from src.models.generation_options import GenerationOptions, ModelOptions
from src.models.loading import load_model, load_tokenizer
from src.models.saving import save_model
from src.modules import Seq2SeqModule

DISTILBART = {
    "num_beams": 4, "min_length": 30, "max_length": 60, "length_penalty": 2.0, "no_repeat_ngram_size": 3,
    "early_stopping": True, "forced_bos_token_id": 0, "forced_eos_token_id": 2,
}  # fmt: skip
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "min_p": 0.02}
PEER = Path(__file__).parents[2] / ".peers" / "transformers-4.45"  # the last series with pipelines that summarise
SUMMARISE = """
import sys
from transformers import pipeline
[made] = pipeline("summarization", model=sys.argv[1], device="cpu")(sys.argv[2])
print(made["summary_text"], end="")
"""
PROMPT = "Anna: Are you coming at 7:30? Ben: Yes, I will bring the 2 tickets."


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command says on standard error is in `caplog`."""
    caplog.set_level(logging.INFO)
    for library in ("src", "transformers"):
        monkeypatch.setattr(logging.getLogger(library), "handlers", [caplog.handler])


@pytest.fixture
def made(tiny_base: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """A directory with a model that does not repeat itself and has settings of its own."""

    def make(architecture: str, settings: dict) -> str:
        model, tokenizer = load_model(tiny_base(architecture)), load_tokenizer(tiny_base(architecture))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.25 * torch.randn(parameter.shape, generator=generator)
        model.generation_config.update(**settings)
        save_model(model, tokenizer, tmp_path / architecture, overwrite=True)
        return str(tmp_path / architecture)

    return make


def by_transformers(name: str, seed: int = 0, **options: object) -> str:
    kind = AutoModelForSeq2SeqLM if "bart" in name else AutoModelForCausalLM
    model, tokenizer = kind.from_pretrained(name), load_tokenizer(name)
    encoded = tokenizer(PROMPT, return_tensors="pt")
    torch.manual_seed(seed)
    output = model.generate(**encoded, **options)[0]
    return str(
        tokenizer.decode(output[1 if "bart" in name else encoded.input_ids.shape[1] :], skip_special_tokens=True)
    )


def said(capsys: pytest.CaptureFixture[str], name: str, *words: str) -> str:
    assert main(["generate", name, "--prompt", PROMPT, "--device", "cpu", *words]) == 0
    return capsys.readouterr().out.removesuffix("\n")


@pytest.mark.slow
@pytest.mark.peers
def test_a_pipeline_that_summarises_says_the_same(made: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    if not PEER.is_dir():
        pytest.skip("needs transformers 4.45 in .peers: make peers")
    name = made("bart", DISTILBART)
    command = [sys.executable, "-c", SUMMARISE, name, PROMPT]
    environment = os.environ | {"PYTHONPATH": str(PEER)}
    theirs = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said(capsys, name) == theirs.strip()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_pipeline_that_goes_on_says_the_same(
    made: Callable[..., str], capsys: pytest.CaptureFixture[str], architecture: str
) -> None:
    """Pipelines sample where the model's settings do not say; ours do not, so theirs are told."""
    name = made(architecture, {"num_beams": 3, "max_new_tokens": 12, "length_penalty": 2.0, "no_repeat_ngram_size": 2})
    [theirs] = pipeline("text-generation", model=name, device="cpu")(PROMPT, return_full_text=False, do_sample=False)
    assert said(capsys, name, "--format", "raw") == theirs["generated_text"].strip()


@pytest.mark.parametrize(
    "change", [{}, {"early_stopping": False}, {"encoder_no_repeat_ngram_size": 2}, {"num_beams": 1}]
)
def test_where_nothing_is_said_it_is_what_transformers_says(
    made: Callable[..., str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, change: dict
) -> None:
    name = made("bart", DISTILBART | change)
    expected = by_transformers(name).strip()
    assert said(capsys, name) == said(capsys, name, "--preset", "model") == expected
    assert "by the model's own settings: max_new_tokens 59, min_new_tokens 29" in caplog.text
    assert expected != said(capsys, name, "--max-new-tokens", "59")


def test_where_something_is_said_none_of_them_holds(
    made: Callable[..., str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    name = made("bart", DISTILBART | {"encoder_no_repeat_ngram_size": 2})
    plain = made("bart", {"forced_bos_token_id": 0, "forced_eos_token_id": 2})
    expected = by_transformers(plain, max_new_tokens=9, num_beams=2, early_stopping=True).strip()
    name = made("bart", DISTILBART | {"encoder_no_repeat_ngram_size": 2})
    caplog.clear()
    warnings_once = transformers_logging.get_logger("transformers.generation.utils").warning_once
    warnings_once.cache_clear()
    assert said(capsys, name, "--max-new-tokens", "9", "--num-beams", "2") == expected
    assert "by none of the model's own settings: max_new_tokens 9, num_beams 2" in caplog.text
    assert not [record for record in caplog.records if record.name.startswith("transformers")]


def test_one_of_them_may_be_changed(made: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    name = made("bart", DISTILBART)
    expected = by_transformers(name, num_beams=2, max_new_tokens=40).strip()
    assert said(capsys, name, "--preset", "model", "--num-beams", "2", "--max-new-tokens", "40") == expected


def test_a_decoder_only_model_samples_as_it_says(made: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    name = made("llama", SAMPLING | {"max_new_tokens": 20})
    model, tokenizer = load_model(name), load_tokenizer(name)
    encoded = tokenizer(PROMPT, return_tensors="pt")
    options = ModelOptions.of(model)
    assert options.top_k == 50
    for seed in range(3):
        torch.manual_seed(seed)
        ours = generate_ids(model, tokenizer, encoded.input_ids, encoded.attention_mask, options)
        assert tokenizer.decode(ours[0], skip_special_tokens=True) == by_transformers(name, seed)
    capsys.readouterr()
    assert said(capsys, name, "--preset", "model", "--seed", "1") == said(
        capsys, name, "--preset", "model", "--seed", "1"
    )


def test_validation_follows_the_model_unless_it_is_told(made: Callable[..., str]) -> None:
    name = made("bart", DISTILBART)
    for generation in (None, GenerationOptions(max_new_tokens=9)):
        module = Seq2SeqModule(name, generation=generation)
        module.configure_model()
        encoded = module.tokenizer([PROMPT], return_tensors="pt")
        batch = {"prompt_ids": encoded.input_ids, "prompt_attention_mask": encoded.attention_mask}
        module.eval()
        [text] = module.generate(batch)  # type: ignore[arg-type]
        told = {"max_new_tokens": 9, "num_beams": 1, "min_length": 0, "no_repeat_ngram_size": 0, "length_penalty": 1.0}
        assert text == by_transformers(name, **(told if generation else {})).strip()


def test_settings_in_words_and_changed(made: Callable[..., str]) -> None:
    model = load_model(made("llama", SAMPLING | {"max_length": 4096}))
    options = with_preset(GenerationOptions(seed=4, bad_words=["x"]), "model", model)
    assert options.max_new_tokens == 512  # half of the window, which is less than what it says
    assert (options.seed, options.bad_words) == (4, ["x"])
    assert describe(with_changes(options, {"top_k": 3})).endswith("bad_words ['x'], seed 4, min_p 0.02")
    assert type(with_preset(options, "greedy")) is GenerationOptions
    model.generation_config.temperature = -1.0
    with pytest.raises(ParleyError, match=r"contradict themselves.*--preset greedy"):
        ModelOptions.of(model)
