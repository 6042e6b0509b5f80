"""ROUGE of several systems on the same examples, and how sure one can be of the difference between two."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.metrics.rouge_scorer import BEST_KEYS, ROUGE_KEYS, ExampleScorer


@dataclass(frozen=True)
class Difference:
    """How much better one system is than another, in points (100 times the difference of the scores).

    Attributes:
        system: Whose scores these are.
        over: Whose scores are taken off.
        points: For each ROUGE key the difference.
        interval: For each ROUGE key the 95 % confidence interval, where one was asked for.
    """

    system: str
    over: str
    points: dict[str, float]
    interval: dict[str, tuple[float, float]] | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of every system on every example.

    Attributes:
        systems: Names.
        keys: ROUGE keys.
        values: `(systems, examples, keys)`, each 0 to 1.
    """

    systems: tuple[str, ...]
    keys: tuple[str, ...]
    values: NDArray[np.float64]

    def means(self) -> dict[str, dict[str, float]]:
        """For each system its mean over examples of each key."""
        means = self.values.mean(axis=1)
        return {
            name: dict(zip(self.keys, row.tolist(), strict=True)) for name, row in zip(self.systems, means, strict=True)
        }

    def differences(self, *, resamples: int = 0, seed: int = 0) -> list[Difference]:
        """Every later system against every earlier one.

        Args:
            resamples: How often to draw as many examples with replacement, the same for all systems (paired
                bootstrap; Koehn, 2004, https://aclanthology.org/W04-3250), for intervals; 0 for none.
            seed: What the draws depend on.
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
        predictions: For each system its texts, one an example.
        references: For each example its references.
        scorer: What scores one example.
        track: Goes over the example numbers, for instance behind a progress bar.

    Returns:
        The scores, `..._best` among them where an example has several references.
    """
    several = any(len(texts) > 1 for texts in references)
    keys = ROUGE_KEYS + BEST_KEYS if several else ROUGE_KEYS
    values = np.empty((len(predictions), len(references), len(keys)))
    for row in track(range(len(references))):
        for system, texts in enumerate(predictions.values()):
            scores = scorer(texts[row], references[row])
            values[system, row] = [scores[key] for key in keys]
    return Scores(tuple(predictions), keys, values)
