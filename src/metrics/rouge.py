"""ROUGE over a data set, as a torchmetrics metric.

torchmetrics carries the sums over batches and processes, but its own ROUGE is not used: its ROUGE-Lsum splits sentences
with nltk's punkt model, which is a download and differs from the standard split at newlines; it sums in float32; and
where a prediction has several references, one pass yields either their mean or the best of them, never both. The
figures here are those of the `rouge_score` package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from src.metrics.rouge_scorer import BEST_KEYS, ROUGE_KEYS, ExampleScorer, TokenizerName, rouge_scores

__all__ = ["BEST_KEYS", "ROUGE_KEYS", "ExampleScorer", "Rouge", "TokenizerName", "rouge_scores"]


class Rouge(Metric):
    """ROUGE-1, 2, L and Lsum F-measures over a data set, with several references an example.

    An example's score is the mean over its references (and, as `..._best`, the best of them); the result is the mean
    over examples. Where all examples have equally many references, as DialogSum's test split has three, this is the
    mean over (prediction, reference) rows that the hub's 1,500-row version amounts to; where they differ, each example
    still counts once.

    `evaluate.load("rouge")` reports the median of 1,000 resampled means in place of the mean, with an unset seed, so
    its figures waver around these by some 0.0002.

    Args:
        use_stemmer: Strip English suffixes (Porter) of words of more than three characters before matching.
        tokenizer: "standard", or "unicode" for text that is not in English; see `RougeTokenizer`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    # Scores are summed as whole multiples of 2^-40: adding integers is exact, so the result is the same bit for bit in
    # any order and over any number of processes, whatever the precision of the model and on devices without float64.
    # Room for 8 million examples.
    _UNIT = 2**40

    def __init__(self, use_stemmer: bool = True, tokenizer: TokenizerName = "standard") -> None:
        super().__init__()
        self.score_example = ExampleScorer(use_stemmer, tokenizer)
        keys = len(ROUGE_KEYS) + len(BEST_KEYS)
        self.add_state("total", torch.zeros(keys, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add a batch.

        Args:
            predictions: `batch` generated texts.
            references: `batch` lists of one or more texts.

        Raises:
            ParleyError: An example has no reference.
            ValueError: There are not as many lists of references as predictions.
        """
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} lists of references")
        examples = [
            self.score_example(prediction, texts) for prediction, texts in zip(predictions, references, strict=True)
        ]
        units = [sum(round(scores[key] * self._UNIT) for scores in examples) for key in ROUGE_KEYS + BEST_KEYS]
        self.total += torch.tensor(units, device=self.total.device)
        self.count += len(examples)

    def compute(self) -> dict[str, float]:
        """The mean over all examples of all processes, each 0 to 1; NaN where there was none."""
        count = int(self.count)
        totals = self.total.tolist()
        return {
            key: total / self._UNIT / count if count else math.nan
            for key, total in zip(ROUGE_KEYS + BEST_KEYS, totals, strict=True)
        }
