"""Rewards that read text and need no classifier: references, length."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from src.errors import ParleyError
from src.rewards.base import Reward


class RougeReward(Reward):
    """ROUGE F1 of the response against its references, from 0 to 1.

    By `rouge_score`, Google's implementation (https://pypi.org/project/rouge-score/).

    Args:
        rouge_type: rouge1, rouge2, any other rougeN, rougeL or rougeLsum.
        use_stemmer: Bring English words to their stem first.
        aggregate: Of several references: the mean score, or the best one.
    """

    needs_references = True

    def __init__(
        self, rouge_type: str = "rougeL", use_stemmer: bool = True, aggregate: Literal["mean", "max"] = "mean"
    ) -> None:
        from rouge_score import rouge_scorer

        if aggregate not in ("mean", "max"):
            raise ParleyError(f"there is no aggregate {aggregate!r}; choose mean or max.")
        self.rouge_type = rouge_type
        self.aggregate = aggregate
        self._scorer = rouge_scorer.RougeScorer([rouge_type], use_stemmer=use_stemmer)
        try:
            self._scorer.score("a", "a")
        except ValueError:
            raise ParleyError(f"there is no {rouge_type!r}; choose rouge1, rouge2, rougeL or rougeLsum.") from None

    def __call__(  # type: ignore[override]  # as `needs_references` says
        self,
        prompts: list[str],
        responses: list[str],
        references: list[list[str]],
    ) -> Tensor:
        """Score each response, shape (batch,)."""
        return torch.tensor([self._score(*pair) for pair in zip(responses, references, strict=True)])

    def _score(self, response: str, references: list[str]) -> float:
        scores = [self._scorer.score(reference, response)[self.rouge_type].fmeasure for reference in references]
        return max(scores) if self.aggregate == "max" else sum(scores) / len(scores)


class LengthReward(Reward):
    """1 for a response of so many words, falling to 0 in a straight line on both sides.

    Args:
        target: Words, as separated by white space.
        falloff: How many words too few or too many bring the score to 0; as many as `target` when left out, so that an
            empty response scores 0.
    """

    def __init__(self, target: int, falloff: int | None = None) -> None:
        self.target = target
        self.falloff = target if falloff is None else falloff
        if self.target < 0 or self.falloff < 1:
            raise ParleyError(
                f"a length of {target} words ± {self.falloff} makes no sense; give whole numbers above 0."
            )

    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        """Score each response, shape (batch,)."""
        words = torch.tensor([len(response.split()) for response in responses], dtype=torch.float32)
        return (1 - (words - self.target).abs() / self.falloff).clamp(min=0)
