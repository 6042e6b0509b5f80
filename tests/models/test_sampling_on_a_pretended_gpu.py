"""Sampling, scoring and generation on a pretended GPU are the CPU's, and mix no devices."""

from __future__ import annotations

import peft  # noqa: F401  (reads torch's devices, so it comes before one is pretended)
import torch

from src.models.generation import GenerationOptions, generate_ids
from src.models.logits import Recorder
from src.models.policy import score_tokens
from src.models.rollout import RolloutOptions, sample_responses
from tests.pretended_gpu import PretendedGPU

TEXTS = ["Anna: Are you coming at 7:30?", "Ben: Yes.", "The quick brown fox jumps over the lazy dog."]


def answers(model, tokenizer, device):
    side = "right" if model.config.is_encoder_decoder else "left"
    encoded = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side=side)
    model.eval().to(device)
    ids, mask = encoded["input_ids"].to(device), encoded["attention_mask"].to(device)
    sampled = sample_responses(
        model,
        ids,
        mask,
        RolloutOptions(min_new_tokens=2, output_min_length=6, output_max_length=12, top_p=0.9),
        eos_token_ids=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        seeds=range(6),
        answers=2,
    )
    repeated = (ids.repeat_interleave(2, dim=0), mask.repeat_interleave(2, dim=0))
    scored = score_tokens(model, *repeated, sampled.ids, sampled.mask, drawable=sampled.drawable)
    scored.logprobs.sum().backward()
    options = GenerationOptions(max_new_tokens=4, num_beams=2, bad_words=["fox"])
    generated = generate_ids(model, tokenizer, ids, mask, options, recorder=Recorder())
    gradient = model.get_output_embeddings().weight.grad
    return [found.detach().to("cpu") for found in (sampled.ids, sampled.mask, generated, scored.logprobs, gradient)]


def test_they_are_those_of_a_cpu(model, tokenizer):
    expected = answers(model, tokenizer, "cpu")
    model.zero_grad()
    with PretendedGPU():
        found = answers(model, tokenizer, "cuda")
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(found[3:], expected[3:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
