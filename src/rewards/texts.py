"""Rewards without a classifier: ROUGE against references, and length."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from src.errors import ParleyError
from src.metrics.rouge_scorer import ROUGE_KEYS, ExampleScorer, TokenizerName
from src.ranges import NOT_NEGATIVE, Range
from src.rewards.base import Reward


class RougeReward(Reward):
    """ROUGE F1 of the response against its references, from 0 to 1, as `parley score` computes it.

    Args:
        rouge_type: rouge1, rouge2, rougeL or rougeLsum.
        use_stemmer: Stem English words before matching.
        tokenizer: `standard` keeps a-z and 0-9 only; `unicode` keeps words of any script.
        aggregate: With several references, take the mean of their scores or the best.
    """

    needs_references = True

    def __init__(
        self,
        rouge_type: str = "rougeL",
        use_stemmer: bool = True,
        tokenizer: TokenizerName = "standard",
        aggregate: Literal["mean", "best"] = "mean",
    ) -> None:
        if rouge_type not in ROUGE_KEYS:
            raise ParleyError(f"there is no {rouge_type!r}; choose one of: {', '.join(ROUGE_KEYS)}.")
        if aggregate not in ("mean", "best"):
            raise ParleyError(f"there is no aggregate {aggregate!r}; choose mean or best.")
        self._key = rouge_type if aggregate == "mean" else f"{rouge_type}_best"
        self._scorer = ExampleScorer(use_stemmer, tokenizer)

    def __call__(  # type: ignore[override]  # the third argument is announced by `needs_references`
        self,
        prompts: list[str],  # noqa: ARG002
        responses: list[str],
        references: list[list[str]],
    ) -> Tensor:
        """Score each response, shape (batch,)."""
        pairs = zip(responses, references, strict=True)
        return torch.tensor([self._scorer(response, texts)[self._key] for response, texts in pairs])


class LengthReward(Reward):
    """1 for a response of `target` words, falling linearly to 0 for shorter and longer ones.

    Args:
        target: The number of words, separated by white space.
        falloff: The difference in words at which the score reaches 0; `target` when left out, so that an empty response
            scores 0.
    """

    def __init__(self, target: int, falloff: int | None = None) -> None:
        self.target = target
        self.falloff = target if falloff is None else falloff
        NOT_NEGATIVE.refuse("target", self.target)
        Range(1, note="as many as target when left out").refuse("falloff", self.falloff)

    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:  # noqa: ARG002
        """Score each response, shape (batch,)."""
        words = torch.tensor([len(response.split()) for response in responses], dtype=torch.float32)
        return (1 - (words - self.target).abs() / self.falloff).clamp(min=0)
