"""Figures of all processes together, from those of each: as if one process had had all of what each had."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Figures = dict[str, Tensor]


def pooled_means(figures: Mapping[str, Tensor], weights: Tensor) -> Figures:
    """The mean of each figure over the processes, by what each has.

    Args:
        figures: Of shape (processes,) each; that of a process which has nothing is left out, even NaN.
        weights: Shape (processes,): how much each has, such as tokens.

    Returns:
        Of shape () each; 0 where none has anything.
    """
    return {name: _mean(figure, weights) for name, figure in figures.items()}


def pooled_variance(means: Tensor, variances: Tensor, counts: Tensor) -> Tensor:
    """The variance of all values together, from what `masked_moments` says of each part (Chan et al., 1979).

    Args:
        means: Shape (parts,).
        variances: Shape (parts,), with Bessel's correction.
        counts: Shape (parts,): values in each.

    Returns:
        Shape (), with Bessel's correction; 0 for fewer than two values.
    """
    within = variances * (counts - 1).clamp(min=0)
    between = counts * (means - _mean(means, counts)).square()
    return torch.where(counts > 0, within + between, 0).sum() / (counts.sum() - 1).clamp(min=1)


def pool_ppo_stats(stats: Mapping[str, Tensor], tokens: Tensor) -> Figures:
    """What `ppo_loss` would say of all processes' minibatches as one.

    Args:
        stats: `PPOLoss.stats` of each process, of shape (processes,) each.
        tokens: Shape (processes,): response tokens of each.

    Returns:
        Of shape () each.
    """
    pooled = pooled_means(stats, tokens)
    for name in ("returns", "val"):
        pooled[f"{name}/var"] = pooled_variance(stats[f"{name}/mean"], stats[f"{name}/var"], tokens)
    advantages = (stats["policy/advantages_mean"], stats["policy/advantages_std"].square())
    pooled["policy/advantages_std"] = pooled_variance(*advantages, tokens).sqrt()
    pooled["policy/ratio_max"] = stats["policy/ratio_max"].max()
    unexplained = pooled["val/error"] / pooled["returns/var"]
    pooled["val/var_explained"] = torch.where(pooled["returns/var"] > 0, 1 - unexplained, torch.nan)
    return pooled


def _mean(figure: Tensor, weights: Tensor) -> Tensor:
    return torch.where(weights > 0, figure * weights, 0).sum() / weights.sum().clamp(min=torch.finfo().tiny)
