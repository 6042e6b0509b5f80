"""Combines the metrics of all processes into those that a single process with all the data would have."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Figures = dict[str, Tensor]


def pooled_means(figures: Mapping[str, Tensor], weights: Tensor) -> Figures:
    """The weighted mean of each figure over the processes.

    Args:
        figures: Of shape (processes,) each; values with weight 0 are ignored, even NaN.
        weights: Shape (processes,), such as the number of tokens of each process.

    Returns:
        Of shape () each; 0 if all weights are 0.
    """
    return {name: _mean(figure, weights) for name, figure in figures.items()}


def pooled_variance(means: Tensor, variances: Tensor, counts: Tensor) -> Tensor:
    """The variance of all values together, from the `masked_moments` of each part (Chan et al., 1979).

    Args:
        means: The parts' means, shape (parts,).
        variances: The parts' variances with Bessel's correction, shape (parts,).
        counts: The number of values in each part, shape (parts,).

    Returns:
        Shape (), with Bessel's correction; 0 for fewer than two values.
    """
    within = variances * (counts - 1).clamp(min=0)
    between = counts * (means - _mean(means, counts)).square()
    return torch.where(counts > 0, within + between, 0).sum() / (counts.sum() - 1).clamp(min=1)


def pool_ppo_stats(stats: Mapping[str, Tensor], tokens: Tensor) -> Figures:
    """The `stats` that `ppo_loss` would give for the minibatches of all processes as one.

    Args:
        stats: `PPOLoss.stats` of each process, of shape (processes,) each.
        tokens: The number of response tokens of each process, shape (processes,).

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
