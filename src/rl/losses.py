"""PPO's losses on one minibatch, with TRL's metrics of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from src.rl.masked import masked_mean, masked_moments, zero_outside


class ClippedLoss(NamedTuple):
    """A clipped loss, each of shape ().

    Attributes:
        loss: The mean over response tokens.
        clipfrac: The share of response tokens at which the clipped term is the larger.
    """

    loss: Tensor
    clipfrac: Tensor


class PPOLoss(NamedTuple):
    """PPO's losses and metrics on one minibatch.

    Attributes:
        total: Shape (): policy + vf_coef * value - entropy_coef * entropy; call `backward` on this.
        policy: The policy loss, shape (), without coefficient.
        value: The value loss, shape (), without coefficient.
        skipped: Shape (), boolean: true if the mean ratio exceeded the threshold; all losses and gradients are 0 then.
        stats: TRL 0.11.4's figures by its names (`loss/policy`, `policy/approxkl`, `val/error` …), and beside them
            `val/var_explained` (1 - error / variance of the returns), `policy/ratio_mean`, `policy/ratio_max`,
            `policy/advantages_std` and `skipped`; each of shape (), without gradient.
    """

    total: Tensor
    policy: Tensor
    value: Tensor
    skipped: Tensor
    stats: dict[str, Tensor]


def policy_loss(log_ratio: Tensor, advantages: Tensor, mask: Tensor, cliprange: float = 0.2) -> ClippedLoss:
    """The clipped surrogate, equation 7 of https://arxiv.org/abs/1707.06347, to be minimised.

    Args:
        log_ratio: Shape (batch, time): new minus old log-probabilities.
        advantages: Shape (batch, time).
        mask: Shape (batch, time), 1 = response token.
        cliprange: How far the ratio may be from 1 before it is clipped.

    Returns:
        The loss and the share of clipped tokens.
    """
    ratio = torch.exp(zero_outside(log_ratio, mask))
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return ClippedLoss(masked_mean(torch.max(plain, clipped), mask), masked_mean((clipped > plain).float(), mask))


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float = 0.2
) -> ClippedLoss:
    """Half the squared error of the value head, clipped around its old values.

    Detail "value function loss clipping" of https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/,
    as in TRL 0.11.4.

    Args:
        values: Shape (batch, time), new.
        old_values: Shape (batch, time), at rollout.
        returns: Shape (batch, time), the targets.
        mask: Shape (batch, time), 1 = response token.
        cliprange_value: The clip, in units of the value.

    Returns:
        The loss and the share of clipped tokens.
    """
    near = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    plain, clipped = (values - returns).square(), (near - returns).square()
    return ClippedLoss(0.5 * masked_mean(torch.max(plain, clipped), mask), masked_mean((clipped > plain).float(), mask))


def ppo_loss(
    logprobs: Tensor,
    values: Tensor,
    entropy: Tensor,
    *,
    old_logprobs: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    mask: Tensor,
    cliprange: float = 0.2,
    cliprange_value: float = 0.2,
    vf_coef: float = 0.1,
    entropy_coef: float = 0.0,
    ratio_threshold: float | None = 10.0,
) -> PPOLoss:
    """Policy loss, value loss and entropy bonus of one minibatch, TRL 0.11.4's `loss`.

    All tensors are of shape (batch, time); padding in them may hold any value.

    Args:
        logprobs: Log-probabilities of the current policy, with gradient.
        values: Values of the current value head, with gradient.
        entropy: Entropy of the policy's distribution at each token, in nats; with gradient if `entropy_coef` is not 0.
        old_logprobs: Log-probabilities at rollout.
        old_values: Values at rollout.
        advantages: From `compute_advantages`.
        returns: From `compute_advantages`.
        mask: 1 = response token.
        cliprange: Clip of the ratio.
        cliprange_value: Clip of the values.
        vf_coef: Weight of the value loss.
        entropy_coef: Weight of the entropy bonus.
        ratio_threshold: Skip a minibatch whose mean ratio exceeds this; never when left out.

    Returns:
        The losses and their metrics.
    """
    old_values, advantages, returns = (zero_outside(tensor, mask) for tensor in (old_values, advantages, returns))
    values = zero_outside(values, mask)
    log_ratio = zero_outside(logprobs - old_logprobs, mask)
    ratio = log_ratio.detach().exp()
    mean_ratio = masked_mean(ratio, mask)
    skipped = (
        torch.zeros_like(mean_ratio, dtype=torch.bool) if ratio_threshold is None else mean_ratio > ratio_threshold
    )

    # An infinite ratio times 0 is NaN, also in the gradient, so a skipped minibatch must not use the ratio at all.
    safe_log_ratio = torch.where(skipped, torch.zeros_like(log_ratio), log_ratio)
    policy = policy_loss(safe_log_ratio, advantages, mask, cliprange).loss
    value, value_clipfrac = value_loss(values, old_values, returns, mask, cliprange_value)
    keep = (~skipped).to(policy.dtype)
    policy, value = policy * keep, value * keep
    mean_entropy = masked_mean(entropy, mask)
    total = policy + vf_coef * value
    if entropy_coef:
        total = total - entropy_coef * mean_entropy * keep

    with torch.no_grad():
        return_moments, value_moments = masked_moments(returns, mask), masked_moments(old_values, mask)
        advantage_moments = masked_moments(advantages, mask)
        error = masked_mean((values - returns).square(), mask)
        stats = {
            "loss/policy": policy,
            "loss/value": value,
            "loss/total": total,
            "policy/entropy": mean_entropy,
            "policy/approxkl": 0.5 * masked_mean(log_ratio.square(), mask),
            "policy/policykl": masked_mean(-log_ratio, mask),
            "policy/clipfrac": policy_loss(log_ratio, advantages, mask, cliprange).clipfrac,
            "policy/advantages_mean": advantage_moments.mean,
            "policy/advantages_std": advantage_moments.var.sqrt(),
            "policy/ratio_mean": mean_ratio,
            "policy/ratio_max": zero_outside(ratio, mask).max(),
            "returns/mean": return_moments.mean,
            "returns/var": return_moments.var,
            "val/vpred": masked_mean(values, mask),
            "val/error": error,
            "val/var_explained": torch.where(return_moments.var > 0, 1 - error / return_moments.var, torch.nan),
            "val/clipfrac": value_clipfrac,
            "val/mean": value_moments.mean,
            "val/var": value_moments.var,
            "skipped": skipped.float(),
        }
    return PPOLoss(total, policy, value, skipped, {name: figure.detach() for name, figure in stats.items()})
