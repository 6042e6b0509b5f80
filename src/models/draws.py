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
    noise = torch.empty_like(probabilities)
    for row, generator in zip(noise, generators, strict=True):
        row.exponential_(1, generator=generator)
    return (probabilities / noise).argmax(dim=-1)


class RowDraws:
    """Draws tokens for the rows of a batch as `draw` does, and goes on with those that go on.

    Filling a row's noise is a kernel of its own, which on a GPU takes longer to launch than to run. There a row's noise
    is drawn for several tokens at once, so that a row's tokens are its generator's still, whatever is in the batch.

    Args:
        generators: One per row, on the same device.
        vocabulary: Tokens to draw among.
        ahead: Tokens to draw noise for at once.
    """

    def __init__(self, generators: Sequence[torch.Generator], vocabulary: int, ahead: int) -> None:
        self._generators, self._vocabulary, self._ahead = list(generators), vocabulary, ahead
        self._drawn = 0
        self._noise: Tensor | None = None  # (rows, ahead, vocabulary)

    @classmethod
    def on(cls, device: torch.device, generators: Sequence[torch.Generator], vocabulary: int) -> RowDraws:
        """On a GPU with noise for eight tokens at once, or as many as are a MiB a row in float32.

        How many depends on nothing that differs from batch to batch, for a row's tokens depend on it.
        """
        return cls(generators, vocabulary, max(1, min(8, 2**18 // vocabulary)) if device.type == "cuda" else 1)

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Draw a token for every row that is left, (rows,), from probabilities (rows, vocabulary)."""
        step = self._drawn % self._ahead
        if step == 0:
            self._noise = None  # before there is more
            self._noise = probabilities.new_empty(len(probabilities), self._ahead, self._vocabulary)
            for row, generator in zip(self._noise, self._generators, strict=True):
                row.exponential_(1, generator=generator)
            self._places: Tensor | None = None  # of the rows in the noise; None while it has no others
        self._drawn += 1
        assert self._noise is not None
        noise = self._noise[:, step] if self._places is None else self._noise[self._places, step]
        return (probabilities / noise).argmax(dim=-1)

    def keep(self, going: Sequence[bool], alive: Tensor) -> None:
        """Go on with some rows.

        Args:
            going: Whether each row goes on.
            alive: (alive,) the indices of those that do.
        """
        self._generators = list(compress(self._generators, going))
        self._places = alive if self._places is None else self._places[alive]


def row_seed(seed: int, number: int, answer: int) -> int:
    """The seed for one answer to one prompt; the seed itself for the first answer to prompt 0."""
    if number == answer == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {answer}".encode()).digest()[:7], "big")
