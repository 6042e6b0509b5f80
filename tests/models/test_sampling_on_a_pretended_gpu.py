"""Sampling, scoring and generation on a pretended GPU are the CPU's, and mix no devices."""

from __future__ import annotations

from collections.abc import Callable

import peft  # noqa: F401  (reads torch's devices, so it comes before one is pretended)
import torch
from torch import Tensor

from src.models.generation import generate_ids
from src.models.generation_options import GenerationOptions
from src.models.logits import Recorder
from src.models.policy import score_tokens
from src.models.rollout import RolloutOptions, sample_responses
from src.models.static_decoder import StaticDecoder
from tests.pretended.gpu import PretendedGPU
from tests.pretended.waits import Wait

TEXTS = ["Anna: Are you coming at 7:30?", "Ben: Yes.", "The quick brown fox jumps over the lazy dog."]


def asked(model, tokenizer, device):
    side = "right" if model.config.is_encoder_decoder else "left"
    encoded = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side=side)
    return encoded["input_ids"].to(device), encoded["attention_mask"].to(device)


def sampled(model, tokenizer, device, engine="plain"):
    return sample_responses(
        model.eval().to(device),
        *asked(model, tokenizer, device),
        RolloutOptions(min_new_tokens=2, output_min_length=6, output_max_length=12, top_p=0.9, engine=engine),
        eos_token_ids=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        seeds=range(6),
        answers=2,
    )


def answers(model, tokenizer, device):
    found = sampled(model, tokenizer, device)
    ids, mask = asked(model, tokenizer, device)
    repeated = (ids.repeat_interleave(2, dim=0), mask.repeat_interleave(2, dim=0))
    scored = score_tokens(model, *repeated, found.ids, found.mask, drawable=found.drawable)
    scored.logprobs.sum().backward()
    options = GenerationOptions(max_new_tokens=4, num_beams=2, bad_words=["fox"])
    generated = generate_ids(model, tokenizer, ids, mask, options, recorder=Recorder())
    gradient = model.get_output_embeddings().weight.grad
    figures = (found.ids, found.mask, generated, scored.logprobs, gradient)
    return [figure.detach().to("cpu") for figure in figures]


def test_they_are_those_of_a_cpu(model, tokenizer):
    expected = answers(model, tokenizer, "cpu")
    model.zero_grad()
    with PretendedGPU():
        found = answers(model, tokenizer, "cuda")
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(found[3:], expected[3:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_static_step_waits_for_nothing(model, tokenizer, monkeypatch):
    """As a step that is captured must: a graph cannot ask the host."""
    monkeypatch.setattr("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True)
    waits: list[list[Wait]] = []
    expected = sampled(model, tokenizer, "cpu", engine="static")

    def watched(_decoder: StaticDecoder) -> Callable[[Callable[[], Tensor]], Tensor]:
        def step(compute: Callable[[], Tensor]) -> Tensor:
            before = len(gpu.waits)
            logits = compute()
            waits.append(gpu.waits[before:])
            return logits

        return step

    monkeypatch.setattr(StaticDecoder, "_new_capture", watched)
    with PretendedGPU() as gpu:
        found = sampled(model, tokenizer, "cuda", engine="static")
        assert torch.equal(found.ids.to("cpu"), expected.ids)
    assert len(waits) >= 4
    assert waits == [[] for _ in waits]
