"""Rows that join a batch under way are decoded as if they were alone."""

from __future__ import annotations

import pytest
import torch

from src.datamodules.encoding import pad
from src.models.decoder import Decoder
from src.models.loading import load_tokenizer

PROMPTS = ["Anna: Are you coming?", "안녕하세요, 오늘", "The quick brown fox jumps over the lazy dog. The fox", "you"]


@pytest.fixture
def ids(kind, base):
    tokenizer = load_tokenizer(base(kind))
    return [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]


def begun(model, prompts: list[list[int]]) -> Decoder:
    return Decoder(model, *pad(prompts, 0, left=not model.config.is_encoder_decoder), own_head=True)


@torch.no_grad()
def alone(model, prompt: list[int], steps: int) -> list[torch.Tensor]:
    """transformers' own forward passes without a cache, greedy."""
    written: list[int] = []
    found = []
    for _ in range(steps):
        if model.config.is_encoder_decoder:
            start = [model.generation_config.decoder_start_token_id]
            logits = model(torch.tensor([prompt]), decoder_input_ids=torch.tensor([start + written])).logits[0, -1]
        else:
            logits = model(torch.tensor([prompt + written])).logits[0, -1]
        found.append(logits)
        written.append(int(logits.argmax()))
    return found


@torch.no_grad()
def test_rows_join_leave_and_are_trimmed(model, ids, shake):
    """One row after the other joins; each one's logits at every step are those that it has alone."""
    shake(model)
    steps = {row: 4 + 2 * row for row in range(len(ids))}  # each goes on for so many
    wanted = [alone(model, prompt, steps[row]) for row, prompt in enumerate(ids)]
    together, members, done = begun(model, [ids[0]]), [0], [0] * len(ids)
    waiting, widths = [1, 2, 3], []
    while members:
        logits = together.next_logits()
        for place, row in enumerate(members):
            torch.testing.assert_close(logits[place], wanted[row][done[row]], atol=2e-4, rtol=1e-3)
            done[row] += 1
        alive = [place for place, row in enumerate(members) if done[row] < steps[row]]
        tokens = logits.argmax(-1)[alive]
        members = [members[place] for place in alive]
        if not members:
            break
        together.advance(tokens, torch.tensor(alive))
        together.trim()
        widths.append(
            together.answer_mask.shape[1] if together.answer_mask is not None else together.query_mask.shape[1]
        )
        if waiting and together.can_join:
            row = waiting.pop(0)
            other = begun(model, [ids[row]])
            first = other.next_logits()
            torch.testing.assert_close(first[0], wanted[row][0], atol=2e-4, rtol=1e-3)
            other.advance(first.argmax(-1), torch.tensor([0]))
            together.join(other)
            members.append(row)
            done[row] = 1
    assert done == (list(steps.values()) if together.can_join else [steps[0], 0, 0, 0])
    assert together.can_join is (model.config.model_type != "bart")
    if together.can_join:
        longest = max(
            len(prompt) * (not model.config.is_encoder_decoder) + steps[row] for row, prompt in enumerate(ids)
        )
        assert max(widths) <= longest + 1
        assert widths[-1] < max(widths) or model.config.is_encoder_decoder  # the long rows' places are forgotten


@torch.no_grad()
def test_several_rows_join_several(model, ids, shake):
    shake(model)
    first, second = begun(model, ids[:2]), begun(model, ids[2:])
    wanted = [alone(model, prompt, 6) for prompt in ids]
    for step in range(3):
        logits = first.next_logits()
        for place in range(2):
            torch.testing.assert_close(logits[place], wanted[place][step], atol=2e-4, rtol=1e-3)
        first.advance(logits.argmax(-1), torch.arange(2))
    logits = second.next_logits()
    second.advance(logits.argmax(-1), torch.arange(2))
    if not first.can_join:
        return
    first.join(second)
    logits = first.next_logits()
    for place, step in enumerate((3, 3, 1, 1)):
        torch.testing.assert_close(logits[place], wanted[place][step], atol=2e-4, rtol=1e-3)
