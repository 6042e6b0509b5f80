"""Metrics of an iteration's rollout, under TRL's names."""

from __future__ import annotations

import torch

from src.rl.kl import sequence_kl
from src.rl.rollout import Rollout


@torch.no_grad()
def rollout_stats(rollout: Rollout) -> dict[str, float]:
    """Metrics of the responses: TRL 0.11.4's `objective/…`, `env/…` and `tokens/…`.

    `objective/kl` is the mean over responses of the KL of the whole response, which PPO's KL controller takes;
    `objective/entropy` is the mean over responses of -logprob of the whole response.

    Args:
        rollout: The responses of all processes.

    Returns:
        The metrics by name.
    """
    mask = rollout.response_mask
    per_response = {
        "objective/kl{}": sequence_kl(rollout.logprobs - rollout.ref_logprobs, mask),
        "env/reward_{}": rollout.scores,
        "tokens/queries_len_{}": rollout.query_mask.sum(-1).float(),
        "tokens/responses_len_{}": mask.sum(-1).float(),
    }
    stats = {
        "objective/entropy": sequence_kl(-rollout.logprobs, mask).mean(),
        "tokens/ended": rollout.has_eos.float().mean(),
    }
    for name, figures in per_response.items():
        mean, std = ("", "_std") if name == "objective/kl{}" else ("mean", "std")
        stats[name.format(mean)] = figures.mean()
        stats[name.format(std)] = figures.std(correction=min(1, len(figures) - 1))
    return {name: float(figure) for name, figure in stats.items()}
