"""Rewards: callables `(prompts, responses) -> Tensor (batch,)` on texts, independent of the policy's tokenizer."""

from src.rewards.base import Reward, check_scores, score_responses
from src.rewards.classifier import ClassifierReward
from src.rewards.profanity import ProfanityReward
from src.rewards.texts import LengthReward, RougeReward
from src.rewards.weighted import WeightedSum

__all__ = [
    "ClassifierReward",
    "LengthReward",
    "ProfanityReward",
    "Reward",
    "RougeReward",
    "WeightedSum",
    "check_scores",
    "score_responses",
]
