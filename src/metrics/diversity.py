"""Distinct-n, the diversity of answers over a data set."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from src.errors import ParleyError
from src.metrics.rouge_scorer import unicode_words


class Diversity(Metric):
    """Distinct-n: the number of distinct n-grams in all answers together, divided by the number of n-grams.

    It is low for a model that answers everything alike (Li et al., 2016, https://arxiv.org/abs/1510.03055). Words may
    be in any script and are lowercased.

    Args:
        orders: The lengths n of the n-grams; each gives a figure `distinct<n>`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    takes_none = True

    def __init__(self, orders: Sequence[int] = (1, 2)) -> None:
        super().__init__()
        if not orders or min(orders) < 1 or len(set(orders)) < len(orders):
            raise ParleyError(f"orders is {list(orders)}; give lengths of n-grams of at least 1, each once.")
        self.orders = tuple(orders)
        for order in self.orders:
            self.add_state(f"grams{order}", [], dist_reduce_fx="cat")

    def update(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]] | None = None,  # noqa: ARG002
    ) -> None:
        """Add a batch.

        Args:
            predictions: Generated answers.
            references: Ignored.
        """
        words = [unicode_words(text) for text in predictions]
        for order in self.orders:
            hashes = [_hash(text[start : start + order]) for text in words for start in range(len(text) - order + 1)]
            self._grams(order).append(torch.tensor(hashes, dtype=torch.long, device=self.device))

    def compute(self) -> dict[str, float]:
        """`distinct1`, `distinct2` …, each from 0 to 1; NaN if there are no n-grams."""
        figures = {}
        for order in self.orders:
            grams = self._grams(order)
            hashes = dim_zero_cat(grams) if len(grams) else torch.zeros(0)
            figures[f"distinct{order}"] = len(hashes.unique()) / len(hashes) if len(hashes) else math.nan
        return figures

    def _grams(self, order: int) -> list[Tensor]:
        grams: list[Tensor] = getattr(self, f"grams{order}")
        return grams


def _hash(words: Sequence[str]) -> int:
    """A 64-bit hash that, unlike Python's `hash`, is the same in every process."""
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
