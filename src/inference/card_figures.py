"""Test results with confidence intervals, for a model card."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from src.files import read_rows
from src.inference.scoring import score_systems
from src.metrics.rouge_scorer import ExampleScorer, TokenizerName

RESAMPLES = 1000


def rouge_with_intervals(file: Path, tokenizer: TokenizerName = "standard") -> tuple[int, dict[str, tuple[float, ...]]]:
    """ROUGE of a test's predictions, the mean over examples, each with its 95 % confidence interval.

    The interval is from 1,000 bootstrap resamples of the examples (Efron, 1979).

    Args:
        file: `predictions.csv` of `parley test`.
        tokenizer: How ROUGE splits texts into words.

    Returns:
        The number of examples, and for each ROUGE key the mean and the interval's ends; 0 and no keys where there are
        no references.

    Raises:
        ParleyError: The file is malformed.
    """
    predictions, references = [], []
    for row in read_rows(file):
        named = [str(cell) for name, cell in row.cells.items() if name.startswith("reference") and cell]
        if not named or "prediction" not in row.cells:
            return 0, {}
        predictions.append(str(row.cells["prediction"]))
        references.append(named)
    if not predictions:
        return 0, {}
    scores = score_systems({"": predictions}, references, ExampleScorer(tokenizer=tokenizer))
    values = scores.values[0]
    rng = np.random.default_rng(0)
    draws = rng.integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.stack([values[draw].mean(axis=0) for draw in draws]), [2.5, 97.5], axis=0)
    means = values.mean(axis=0)
    return len(values), {
        key: (float(means[place]), float(low[place]), float(high[place])) for place, key in enumerate(scores.keys)
    }
