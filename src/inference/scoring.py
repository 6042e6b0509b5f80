"""ROUGE of several systems on the same examples, and confidence intervals of their differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.metrics.rouge_scorer import BEST_KEYS, ROUGE_KEYS, ExampleScorer


@dataclass(frozen=True)
class Difference:
    """The difference between two systems' mean scores, in points (100 times the scores).

    Attributes:
        system: The system whose scores are the minuend.
        over: The system whose scores are subtracted.
        points: The difference for each ROUGE key.
        interval: The 95 % confidence interval for each ROUGE key; None if none was asked for.
    """

    system: str
    over: str
    points: dict[str, float]
    interval: dict[str, tuple[float, float]] | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of every system on every example.

    Attributes:
        systems: The systems' names.
        keys: The ROUGE keys.
        values: (systems, examples, keys) scores from 0 to 1.
    """

    systems: tuple[str, ...]
    keys: tuple[str, ...]
    values: NDArray[np.float64]

    def means(self) -> dict[str, dict[str, float]]:
        """Each system's mean over examples of each key."""
        means = self.values.mean(axis=1)
        return {
            name: dict(zip(self.keys, row.tolist(), strict=True)) for name, row in zip(self.systems, means, strict=True)
        }

    def differences(self, *, resamples: int = 0, seed: int = 0) -> list[Difference]:
        """The differences of every later system to every earlier one.

        Args:
            resamples: Resamples of the paired bootstrap (Koehn, 2004, https://aclanthology.org/W04-3250) that gives the
                intervals; 0 for no intervals.
            seed: The seed of the resampling.
        """
        means = self.values.mean(axis=1)
        resampled = self._resampled_means(resamples, seed)
        differences = []
        for first, second in itertools.combinations(range(len(self.systems)), 2):
            points = (means[second] - means[first]) * 100
            interval = None
            if resamples:
                gaps = (resampled[:, second] - resampled[:, first]) * 100
                low, high = np.percentile(gaps, [2.5, 97.5], axis=0).tolist()
                interval = dict(zip(self.keys, zip(low, high, strict=True), strict=True))
            differences.append(
                Difference(
                    self.systems[second],
                    self.systems[first],
                    dict(zip(self.keys, points.tolist(), strict=True)),
                    interval,
                )
            )
        return differences

    def _resampled_means(self, resamples: int, seed: int) -> NDArray[np.float64]:
        rng = np.random.default_rng(seed)
        count = self.values.shape[1]
        means = np.empty((resamples, len(self.systems), len(self.keys)))
        for index in range(resamples):
            draws = np.bincount(rng.integers(count, size=count), minlength=count)
            means[index] = np.einsum("n,snk->sk", draws, self.values) / count
        return means


def score_systems(
    predictions: dict[str, list[str]],
    references: list[list[str]],
    scorer: ExampleScorer,
    *,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Scores:
    """Score every system's predictions.

    Args:
        predictions: The texts of each system, one per example.
        references: The references of each example.
        scorer: Scores a single example.
        track: Wraps the iteration over examples, for instance in a progress bar.

    Returns:
        The scores, including `..._best` keys if any example has several references.
    """
    several = any(len(texts) > 1 for texts in references)
    keys = ROUGE_KEYS + BEST_KEYS if several else ROUGE_KEYS
    values = np.empty((len(predictions), len(references), len(keys)))
    for row in track(range(len(references))):
        for system, texts in enumerate(predictions.values()):
            scores = scorer(texts[row], references[row])
            values[system, row] = [scores[key] for key in keys]
    return Scores(tuple(predictions), keys, values)
