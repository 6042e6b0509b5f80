"""Means of metrics over the pairs of an optimiser step or a split, independent of batches and processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor


class PairMeans:
    """Accumulates sums of metrics over pairs, and the number of pairs."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._pairs: Tensor | None = None

    def add(self, figures: Mapping[str, Tensor], pairs: Tensor) -> None:
        """Add some pairs.

        Args:
            figures: Sums of the metrics over them, scalars.
            pairs: The number of pairs, a scalar.
        """
        self._pairs = pairs if self._pairs is None else self._pairs + pairs
        for name, figure in figures.items():
            self._sums[name] = self._sums[name] + figure if name in self._sums else figure

    def means(self, trainer: Trainer) -> dict[str, Tensor]:
        """The mean of each metric over all pairs of all processes so far; every process must call this, or none.

        Args:
            trainer: The trainer.

        Returns:
            The means by name; empty if there were no pairs.
        """
        if self._pairs is None:
            return {}
        sums = torch.stack([self._pairs.float(), *(figure.float() for figure in self._sums.values())])
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        return dict(zip(self._sums, sums[1:] / sums[0].clamp(min=1), strict=True))

    def reset(self) -> None:
        """Reset the sums."""
        self._sums, self._pairs = {}, None
