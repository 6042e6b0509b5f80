"""ROUGE over a data set, as a torchmetrics metric.

torchmetrics' own ROUGE is not used: its ROUGE-Lsum splits sentences with nltk's punkt model, which is a download and
differs from the standard split at newlines; it sums in float32; and where a prediction has several references, one pass
yields either their mean or the best of them, never both. The figures here are those of the `rouge_score` package.
"""

from __future__ import annotations

from collections.abc import Sequence

from src.metrics.answers import Answer, AnswerMetric
from src.metrics.rouge_scorer import BEST_KEYS, ROUGE_KEYS, ExampleScorer, TokenizerName, rouge_scores

__all__ = ["BEST_KEYS", "ROUGE_KEYS", "ExampleScorer", "Rouge", "TokenizerName", "rouge_scores"]


class Rouge(AnswerMetric):
    """ROUGE-1, 2, L and Lsum F-measures over a data set, with one or several references per example.

    An example's score is the mean over its references (and, as `..._best`, the best of them); the result is the mean
    over examples. Where all examples have equally many references, as DialogSum's test split has three, this is the
    mean over (prediction, reference) rows that the hub's 1,500-row version amounts to; where they differ, each example
    still counts once.

    `evaluate.load("rouge")` reports the median of 1,000 resampled means in place of the mean, with an unset seed, so
    its figures vary around these by some 0.0002.

    Args:
        use_stemmer: Strip English suffixes (Porter) of words of more than three characters before matching.
        tokenizer: "standard", or "unicode" for text that is not in English; see `RougeTokenizer`.
    """

    higher_is_better = True
    names = ROUGE_KEYS + BEST_KEYS

    def __init__(self, use_stemmer: bool = True, tokenizer: TokenizerName = "standard") -> None:
        super().__init__()
        self.score_example = ExampleScorer(use_stemmer, tokenizer)

    def each(self, answers: Sequence[Answer]) -> list[dict[str, float]]:
        """ROUGE of each answer, each figure from 0 to 1.

        Raises:
            ParleyError: An example has no reference.
        """
        return [self.score_example(answer.prediction, answer.references) for answer in answers]
