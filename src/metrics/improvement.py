"""By how much figures fell between two sets of answers to the same prompts, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.errors import ParleyError

_RESAMPLES_AT_ONCE = 256


@dataclass(frozen=True)
class Change:
    """A figure before and after, and by how much it fell, with a confidence interval.

    Attributes:
        before: The figure before.
        after: The figure after.
        percent: By how many per cent it fell; below 0 where it rose; NaN where it was 0 before.
        low: Lower end of the interval of `percent`.
        high: Upper end of it.
    """

    before: float
    after: float
    percent: float
    low: float
    high: float


@dataclass(frozen=True)
class Improvement:
    """The change of the mean and the standard deviation of figures over examples.

    Attributes:
        mean: The change of their mean.
        std: The change of their population standard deviation.
        confidence: The confidence level of the intervals, from 0 to 1.
    """

    mean: Change
    std: Change
    confidence: float


def percent_improvement(
    before: Sequence[float],
    after: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Improvement:
    """By how many per cent mean and standard deviation fell, (before - after) / before, as in the published recipe.

    The intervals are a paired percentile bootstrap's (Efron and Tibshirani, An Introduction to the Bootstrap, ch. 13):
    examples are resampled with replacement, each with both of its figures.

    Args:
        before: A figure for each example.
        after: A figure for each of the same examples, in the same order.
        confidence: The confidence level of the intervals.
        resamples: The number of resamples.
        seed: The seed of the resampling.

    Returns:
        The improvement.

    Raises:
        ParleyError: There are no figures, or not as many after as before.
    """
    figures = np.asarray([before, after] if len(before) == len(after) else [], dtype=np.float64)
    if not figures.size:
        raise ParleyError(f"{len(before)} figures before and {len(after)} after; give both for each example.")
    generator = np.random.default_rng(seed)
    draws = []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        size = (min(_RESAMPLES_AT_ONCE, resamples - start), len(before))
        drawn = figures[:, generator.integers(len(before), size=size)]
        draws.append([_percent(*drawn.mean(axis=-1)), _percent(*drawn.std(axis=-1))])
    mean, std = np.concatenate(draws, axis=-1)
    return Improvement(
        mean=_change(figures.mean(axis=-1), mean, confidence),
        std=_change(figures.std(axis=-1), std, confidence),
        confidence=confidence,
    )


def _change(pair: Any, drawn: Any, confidence: float) -> Change:
    tail, drawn = 50 * (1 - confidence), drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, [tail, 100 - tail]) if drawn.size else (np.nan, np.nan)
    return Change(*map(float, (*pair, _percent(*pair), low, high)))


def _percent(before: Any, after: Any) -> Any:
    before, after = np.asarray(before), np.asarray(after)
    defined = before != 0
    return np.where(defined, 100 * (before - after) / np.where(defined, before, 1), np.nan)
