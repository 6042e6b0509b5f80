"""Advantages of RLOO and GRPO, which compare several responses to a prompt and need no value head.

The responses to one prompt follow each other: row `i` belongs to prompt `i // num_generations`. Names and figures are
those of TRL 1.16's `RLOOTrainer` and `GRPOTrainer`.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor
from trl.trainer.utils import nanstd

ScaleRewards = Literal["group", "batch", "none"]
SCALE_REWARDS: tuple[str, ...] = get_args(ScaleRewards)
EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, as in TRL."""


def leave_one_out_advantages(rewards: Tensor, num_generations: int, normalize: bool = False) -> Tensor:
    """Each response's reward minus the mean reward of the other responses to its prompt.

    RLOO's baseline, section 3.2 of https://arxiv.org/abs/2402.14740.

    Args:
        rewards: Shape (prompts * num_generations,), the KL penalty included; NaN where a response has none.
        num_generations: Responses per prompt, at least 2.
        normalize: Bring the advantages of the batch to mean 0 and standard deviation 1.

    Returns:
        Shape (prompts * num_generations,); 0 where the reward is NaN, or where no other response has one.
    """
    groups = rewards.view(-1, num_generations)
    known = ~groups.isnan()
    others = known.sum(dim=1, keepdim=True) - 1
    baseline = (groups.nansum(dim=1, keepdim=True) - groups) / others  # NaN, 0 / 0, for a lone reward
    advantages = (groups - baseline).flatten()
    if normalize:
        advantages = (advantages - advantages.nanmean()) / (nanstd(advantages) + EPSILON)
    return advantages.nan_to_num(nan=0.0)


def group_advantages(rewards: Tensor, num_generations: int, scale_rewards: ScaleRewards = "group") -> Tensor:
    """Each response's reward minus its group's mean, divided by a standard deviation.

    Equation 3 of https://arxiv.org/abs/2402.03300 (`group`); without the division as in "Dr. GRPO",
    https://arxiv.org/abs/2503.20783 (`none`).

    Args:
        rewards: Shape (prompts * num_generations,); NaN where a response has none.
        num_generations: Responses per prompt, at least 2.
        scale_rewards: Divide by the standard deviation of the response's group, of the whole batch, or not at all.

    Returns:
        Shape (prompts * num_generations,); 0 where the reward is NaN.
    """
    groups = rewards.view(-1, num_generations)
    advantages = groups - groups.nanmean(dim=1, keepdim=True)
    if scale_rewards == "group":
        advantages = advantages / (nanstd(groups, dim=1, keepdim=True) + EPSILON)
    elif scale_rewards == "batch":
        advantages = advantages / (nanstd(rewards) + EPSILON)
    return advantages.flatten().nan_to_num(nan=0.0)
