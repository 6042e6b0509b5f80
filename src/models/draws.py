"""Tokens drawn for each row with a generator of its own, so that rows do not depend on each other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor


def draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one token per row with the row's own generator, as `torch.multinomial` would for each row.

    Args:
        probabilities: (rows, vocabulary).
        generators: One per row, on the same device.

    Returns:
        The drawn tokens, (rows,).
    """
    return (probabilities / _fill(torch.empty_like(probabilities), generators)).argmax(dim=-1)


def _fill(noise: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Fill each row, of any shape, with exponential noise from its own generator."""
    for row, generator in zip(noise, generators, strict=True):
        row.exponential_(1, generator=generator)
    return noise


class RowDraws:
    """Draws tokens for the rows of a batch as `draw` does, and goes on with those that go on.

    Filling a row's noise is a kernel of its own, which on a GPU takes longer to launch than to run. There a row's noise
    is drawn for several tokens at once, so that a row's tokens are its generator's still, whatever is in the batch.

    Args:
        generators: One per row, on the same device.
        ahead: Tokens to draw noise for at once; as `tokens_ahead` says when left out.
    """

    def __init__(self, generators: Sequence[torch.Generator], ahead: int | None = None) -> None:
        self._generators, self._ahead = list(generators), ahead
        self._left: list[Tensor] = []  # noise of the next tokens, (rows, vocabulary) each
        self._places: Tensor | None = None  # of the rows in the noise; None while it has no others

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Draw a token for every row that is left, (rows,), from probabilities (rows, vocabulary)."""
        if not self._left:
            rows, vocabulary = probabilities.shape
            ahead = self._ahead or tokens_ahead(probabilities.device, vocabulary)
            self._left = [*_fill(probabilities.new_empty(rows, ahead, vocabulary), self._generators).unbind(1)]
            self._places = None
        noise = self._left.pop(0)
        return (probabilities / (noise if self._places is None else noise[self._places])).argmax(dim=-1)

    def keep(self, going: Sequence[bool], alive: Tensor) -> None:
        """Go on with some rows.

        Args:
            going: Whether each row goes on.
            alive: (alive,) the indices of those that do.
        """
        self._generators = list(compress(self._generators, going))
        self._places = alive if self._places is None else self._places[alive]


def tokens_ahead(device: torch.device, vocabulary: int) -> int:
    """Tokens to draw noise for at once: on a GPU eight, or as many as are a MiB a row in float32; elsewhere one.

    It depends on nothing that differs from batch to batch, for a row's tokens depend on it.
    """
    return max(1, min(8, 2**18 // vocabulary)) if device.type == "cuda" else 1


def row_seed(seed: int, number: int, answer: int) -> int:
    """The seed for one answer to one prompt; the seed itself for the first answer to prompt 0."""
    if number == answer == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {answer}".encode()).digest()[:7], "big")
