"""Figures of parts, pooled, are those of the whole."""

from __future__ import annotations

import pytest
import torch

from src.rl.losses import ppo_loss
from src.rl.pooling import pool_ppo_stats, pooled_means, pooled_variance


def stats_of(parts):
    """What `ppo_loss` says of the tensors, whose last one is the mask."""
    new, values, entropy, old, old_values, advantages, returns, mask = parts
    losses = ppo_loss(
        new,
        values,
        entropy,
        old_logprobs=old,
        old_values=old_values,
        advantages=advantages,
        returns=returns,
        mask=mask,
        vf_coef=0.3,
        entropy_coef=0.1,
    )
    return losses.stats


@pytest.mark.parametrize("sizes", [(3, 5), (1, 7), (4, 0, 4), (2, 1, 1, 4)])
def test_ppo_figures_are_those_of_one_minibatch(sizes):
    torch.manual_seed(len(sizes))
    tensors = [torch.randn(8, 6) * 0.5 for _ in range(7)]
    mask = (torch.arange(6) < torch.randint(1, 7, (8, 1))).long()
    parts = []
    for rows in torch.arange(8).split(list(sizes)):
        taken = rows if len(rows) else torch.zeros(1, dtype=torch.long)  # a process without rows: an empty mask
        parts.append([*(one[taken] for one in tensors), mask[taken] if len(rows) else mask[:1] * 0])
    each = [stats_of(part) for part in parts]
    tokens = torch.tensor([float(part[-1].sum()) for part in parts])
    pooled = pool_ppo_stats({name: torch.stack([one[name] for one in each]) for name in each[0]}, tokens)
    whole = stats_of([*tensors, mask])
    assert pooled.keys() == whole.keys()
    for name, figure in whole.items():
        torch.testing.assert_close(pooled[name], figure, msg=name, rtol=1e-4, atol=1e-5)


def test_who_has_nothing_does_not_count_not_even_with_nan():
    weights = torch.tensor([3.0, 0.0, 1.0])
    assert pooled_means({"a": torch.tensor([1.0, torch.nan, 5.0])}, weights) == {"a": torch.tensor(2.0)}
    assert pooled_means({"a": torch.tensor([1.0, 2.0, 5.0])}, weights * 0) == {"a": torch.tensor(0.0)}
    means, variances, counts = torch.tensor([1.0, torch.nan]), torch.tensor([2.0, torch.nan]), torch.tensor([4.0, 0.0])
    assert pooled_variance(means, variances, counts) == 2
