"""An iteration's figures under the names that TRL's users have on their dashboards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from src.rl.kl import sequence_kl
from src.rl.losses import PPOLoss
from src.rl.masked import Reduce, masked_mean, masked_moments
from src.rl.rollout import Rollout

_PER_TOKEN = ("policy/advantages", "policy/ratio")


@torch.no_grad()
def rollout_stats(rollout: Rollout, kl_coef: float, reduce: Reduce | None = None) -> dict[str, float]:
    """Figures of the responses: TRL 0.11.4's `record_step_stats` and `env/…`.

    `objective/kl` is the mean over responses of the KL of the whole response, what the KL controller takes;
    `objective/entropy` is the mean of -logprob of the whole response.

    Args:
        rollout: This process's responses.
        kl_coef: The coefficient that was charged.
        reduce: Sums over processes: the figures are those of the global batch.

    Returns:
        Name to figure.
    """
    mask = rollout.response_mask
    kl = masked_moments(sequence_kl(rollout.kl, mask), _ones(len(rollout), mask), reduce=reduce)
    entropy = sequence_kl(-rollout.logprobs, mask)
    stats = {
        "objective/kl": kl.mean,
        "objective/kl_std": kl.var.sqrt(),
        "objective/entropy": masked_mean(entropy, _ones(len(rollout), mask), reduce=reduce),
        "ppo/mean_non_score_reward": masked_mean(-kl_coef * rollout.kl, mask, reduce=reduce),
    }
    per_response = {
        "ppo/{}_scores": rollout.shaped_scores,
        "env/reward_{}": rollout.scores,
        "tokens/queries_len_{}": rollout.query_mask.sum(-1).float(),
        "tokens/responses_len_{}": mask.sum(-1).float(),
    }
    for name, figures in per_response.items():
        moments = masked_moments(figures, _ones(len(rollout), mask), reduce=reduce)
        stats[name.format("mean")], stats[name.format("std")] = moments.mean, moments.var.sqrt()
    return {"objective/kl_coef": kl_coef} | {name: float(figure) for name, figure in stats.items()}


@torch.no_grad()
def update_stats(losses: Sequence[PPOLoss], reduce: Reduce | None = None) -> dict[str, float]:
    """Figures of an update: the mean of each minibatch's, as in TRL 0.11.4, with `ppo/` before its name.

    Beside them `ppo/val/var_explained` (1 - error / variance of the returns), `ppo/policy/ratio_mean`,
    `ppo/policy/ratio_max`, `ppo/policy/advantages_std` and `ppo/skipped_minibatches`.

    Args:
        losses: Of this process's minibatches, at least one.
        reduce: Sums over processes: means are over all of them, except `ratio_max`, which is this process's.

    Returns:
        Name to figure.
    """
    names = [name for name in losses[0].stats if name not in _PER_TOKEN]
    table = torch.stack([torch.stack([loss.stats[name].float() for name in names]) for loss in losses])
    ratios = torch.cat([loss.stats["policy/ratio"] for loss in losses])
    advantages = torch.cat([loss.stats["policy/advantages"] for loss in losses])
    sums = torch.cat([table.sum(0), table.new_tensor([len(losses), sum(bool(loss.skipped) for loss in losses)])])
    sums = sums if reduce is None else reduce(sums)
    stats = dict(zip([f"ppo/{name}" for name in names], (sums[:-2] / sums[-2]).tolist(), strict=True))
    variance = stats["ppo/returns/var"]
    stats["ppo/val/var_explained"] = 1 - stats["ppo/val/error"] / variance if variance > 0 else float("nan")
    stats["ppo/policy/ratio_mean"] = float(masked_mean(ratios, torch.ones_like(ratios), reduce=reduce))
    stats["ppo/policy/ratio_max"] = float(ratios.max()) if ratios.numel() else 1.0
    advantage_moments = masked_moments(advantages, torch.ones_like(advantages), reduce=reduce)
    stats["ppo/policy/advantages_std"] = float(advantage_moments.var.sqrt())
    stats["ppo/skipped_minibatches"] = float(sums[-1])
    return stats


def _ones(length: int, like: Tensor) -> Tensor:
    return torch.ones(length, device=like.device)
