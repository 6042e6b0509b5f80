"""A weighted sum of rewards."""

from __future__ import annotations

import torch
from torch import Tensor

from src.errors import ParleyError
from src.rewards.base import Reward, score_responses


class WeightedSum(Reward):
    """The weighted sum of several rewards.

    It needs references if any of them does.

    Args:
        rewards: The rewards.
        weights: One for each; all 1 when left out. A negative weight makes a reward a penalty.
    """

    def __init__(self, rewards: list[Reward], weights: list[float] | None = None) -> None:
        weights = [1.0] * len(rewards) if weights is None else weights
        if not rewards or len(weights) != len(rewards):
            raise ParleyError(f"{len(weights)} weights for {len(rewards)} rewards; give at least one of each, as many.")
        self.rewards = rewards
        self.weights = weights
        self.needs_references = any(reward.needs_references for reward in rewards)

    def __call__(self, prompts: list[str], responses: list[str], references: list[list[str]] | None = None) -> Tensor:
        """Score each response, shape (batch,), float32, on the CPU."""
        total = torch.zeros(len(responses), dtype=torch.float32)
        for weight, reward in zip(self.weights, self.rewards, strict=True):
            total += weight * score_responses(reward, prompts, responses, references).cpu()
        return total

    def to(self, device: torch.device | str) -> WeightedSum:
        """Move all rewards to a device."""
        for reward in self.rewards:
            reward.to(device)
        return self
