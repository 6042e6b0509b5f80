"""Rows draw with generators of their own, however far ahead their noise is made."""

from __future__ import annotations

import pytest
import torch

from src.models.draws import RowDraws, draw, tokens_ahead

VOCABULARY = 50


def generators(rows: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in rows]


def drawn(rows: list[int], ahead: int, leaves: dict[int, int], steps: int = 9) -> dict[int, list[int]]:
    """The tokens of each row, by its number; `leaves` says after which step a row ends."""
    draws, found = RowDraws(generators(rows), ahead), {row: [] for row in rows}
    for step in range(steps):
        chance = [torch.Generator().manual_seed(1000 * row + step) for row in rows]
        probabilities = torch.stack([torch.rand(VOCABULARY, generator=each) for each in chance]).softmax(-1)
        for row, token in zip(rows, draws(probabilities).tolist(), strict=True):
            found[row].append(token)
        going = [leaves.get(row, steps) > step for row in rows]
        draws.keep(going, torch.tensor(going).nonzero().flatten())
        rows = [row for row, goes in zip(rows, going, strict=True) if goes]
    return found


@pytest.mark.parametrize("ahead", [1, 4])
def test_a_rows_tokens_are_its_own_whichever_rows_leave(ahead):
    together = drawn([1, 2, 3, 4], ahead, leaves={1: 0, 3: 2, 4: 5})
    for row, tokens in together.items():
        alone = drawn([row], ahead, leaves={})[row]
        assert tokens == alone[: len(tokens)]
    assert [len(tokens) for tokens in together.values()] == [1, 9, 3, 6]


def test_without_noise_ahead_draws_what_a_row_draws_by_itself():
    probabilities = torch.rand(3, VOCABULARY).softmax(-1)
    mine, its = RowDraws(generators([5, 6, 7]), 1), generators([5, 6, 7])
    for _ in range(4):
        assert torch.equal(mine(probabilities), draw(probabilities, its))


def test_tokens_drawn_ahead_follow_their_probabilities():
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).repeat(4000, 1)
    draws = RowDraws(generators(list(range(4000))), 8)
    counts = sum(torch.bincount(draws(probabilities), minlength=4) for _ in range(8))
    expected = probabilities[0] * 32_000
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # chi-squared, 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize(("vocabulary", "ahead"), [(300, 8), (32_128, 8), (128_256, 2), (10**6, 1)])
def test_a_gpu_has_as_much_noise_ahead_as_the_vocabulary_allows(vocabulary, ahead):
    assert tokens_ahead(torch.device("cuda"), vocabulary) == ahead
    assert tokens_ahead(torch.device("cpu"), vocabulary) == 1
