"""A reward by alt-profanity-check, a trained classifier of offensive language that needs no download."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from src.errors import ParleyError
from src.models.texts_to_classify import Text, check_text, texts_to_score
from src.rewards.base import Reward


class ProfanityReward(Reward):
    """How inoffensive a text is, by `alt-profanity-check` (a linear SVM on word counts, for English, on the CPU).

    Args:
        output: `probability`: 1 - p, where p is the probability of being offensive. `log_odds`: log((1 - p) / p), from
            about -9 to 9, which still distinguishes texts whose p is near 0.
        text: What is scored: the response alone, or prompt, a space and the response.
    """

    def __init__(self, output: Literal["probability", "log_odds"] = "probability", text: Text = "response") -> None:
        if output not in ("probability", "log_odds"):
            raise ParleyError(f"there is no output {output!r}; choose probability or log_odds.")
        check_text(text)
        self.output = output
        self.text = text

    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        """Score each response, shape (batch,), float32."""
        offensive = profanity_probability(texts_to_score(prompts, responses, self.text))
        if self.output == "probability":
            return (1 - offensive).float()
        return -torch.logit(offensive, eps=1e-4).float()


def profanity_probability(texts: Sequence[str]) -> Tensor:
    """The probability that each text is offensive.

    Args:
        texts: What to score.

    Returns:
        Shape (texts,), float64, on the CPU.

    Raises:
        ParleyError: alt-profanity-check is not installed.
    """
    with warnings.catch_warnings():  # its model was pickled by another version of scikit-learn, which does no harm
        warnings.filterwarnings("ignore", message="Trying to unpickle estimator")
        try:
            profanity_check = importlib.import_module("profanity_check")
        except ImportError as error:
            raise ParleyError(
                "scoring profanity needs alt-profanity-check, which is not installed; `pip install -e '.[rewards]'`."
            ) from error
    if not texts:
        return torch.zeros(0, dtype=torch.float64)
    return torch.as_tensor(profanity_check.predict_prob(list(texts)), dtype=torch.float64)
