"""The static engine on a real GPU: captured steps take the plain engine's tokens, and keep their memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from src.models.generation import generate_ids
from src.models.generation_options import GenerationOptions
from src.models.loading import load_model, load_tokenizer
from src.models.rollout import RolloutOptions, sample_responses
from src.models.static_decoder import CapturedStep
from tests.shaking import shaken

PROMPTS = [[7 + row, 11, 12 + row % 3] for row in range(6)]
ON_BOTH = [
    ("t5", "cpu"),
    *(pytest.param(each, "cuda", marks=pytest.mark.gpu) for each in ("t5", "bart", "gpt2", "llama")),
]


def asked(tiny_base, architecture, device):
    base = tiny_base(architecture)
    model = load_model(base).eval()
    shaken(model, size=0.1)
    ids = torch.tensor(PROMPTS, device=device)
    return model.to(device), load_tokenizer(base), ids, torch.ones_like(ids)


@pytest.mark.parametrize(("architecture", "device"), ON_BOTH)
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 3}], ids=["greedy", "sampled"])
def test_generation_gives_the_same_tokens(tiny_base, architecture, device, options):
    plain = GenerationOptions(max_new_tokens=24, min_new_tokens=20, **options)
    given = asked(tiny_base, architecture, device)
    expected = generate_ids(*given, plain)
    for _ in range(2):  # a second time by graphs of its own, in the memory of the first
        assert torch.equal(generate_ids(*given, replace(plain, engine="static")), expected)


@pytest.mark.parametrize(("architecture", "device"), ON_BOTH)
def test_rollouts_sample_the_same_tokens_while_the_weights_change(tiny_base, architecture, device):
    model, tokenizer, ids, mask = asked(tiny_base, architecture, device)
    plain = RolloutOptions(output_min_length=4, output_max_length=24, min_new_tokens=4)
    ends = {"eos_token_ids": [tokenizer.eos_token_id], "pad_token_id": tokenizer.pad_token_id}
    for seed in range(3):
        shaken(model.cpu(), size=0.02, seed=seed)
        model.to(device)
        found = [
            sample_responses(model, ids, mask, replace(plain, engine=engine), seeds=range(6), **ends).ids
            for engine in ("plain", "static")
        ]
        assert torch.equal(*found)


@pytest.mark.gpu
def test_captures_keep_what_torch_has_in_reserve_and_do_not_add_to_it_without_end():
    held = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    weight = torch.randn(512, 512, device="cuda")
    del held  # now in reserve
    reserved = []
    for _ in range(8):
        step = CapturedStep(weight.device)
        results = [step(lambda: (weight @ weight).relu()).clone() for _ in range(4)]
        assert all(torch.equal(result, results[0]) for result in results)
        reserved.append(torch.cuda.memory_reserved())
    assert min(reserved) >= 256 * 2**20
    assert reserved[-1] == reserved[1]
