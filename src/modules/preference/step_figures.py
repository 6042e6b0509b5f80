"""Figures of pairs, averaged over an optimiser step or a split, however these are cut into batches and processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor


class PairMeans:
    """Sums of figures of pairs, and their number."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._pairs: Tensor | None = None

    def add(self, figures: Mapping[str, Tensor], pairs: Tensor) -> None:
        """Take in some pairs.

        Args:
            figures: Sums over them, scalars.
            pairs: How many they are, a scalar.
        """
        self._pairs = pairs if self._pairs is None else self._pairs + pairs
        for name, figure in figures.items():
            self._sums[name] = self._sums[name] + figure if name in self._sums else figure

    def means(self, trainer: Trainer) -> dict[str, Tensor]:
        """The mean of each figure over all pairs of all processes so far; every process must call this, or none.

        Args:
            trainer: Whose processes.

        Returns:
            By name; nothing where there was no pair.
        """
        if self._pairs is None:
            return {}
        sums = torch.stack([self._pairs.float(), *(figure.float() for figure in self._sums.values())])
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        return dict(zip(self._sums, sums[1:] / sums[0].clamp(min=1), strict=True))

    def reset(self) -> None:
        """Start anew."""
        self._sums, self._pairs = {}, None
