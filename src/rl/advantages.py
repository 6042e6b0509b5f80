"""Computes rewards per token, advantages and returns from scores and log-probabilities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from src.rl.kl import KLPenalty, kl_penalty
from src.rl.masked import masked_whiten, zero_outside


class TokenRewards(NamedTuple):
    """Rewards per token, each of shape (batch, time) and 0 outside the mask.

    Attributes:
        rewards: The KL penalty on every response token, plus the score on the last one.
        non_score_rewards: The KL penalty alone, -kl_coef * kl.
        kl: The KL estimate.
    """

    rewards: Tensor
    non_score_rewards: Tensor
    kl: Tensor


class Advantages(NamedTuple):
    """Advantages and returns, each of shape (batch, time) and 0 outside the mask.

    Attributes:
        advantages: How much better each token was than the value head expected; whitened if asked for.
        returns: Unwhitened advantages plus values: the value head's targets.
    """

    advantages: Tensor
    returns: Tensor


def last_token_mask(mask: Tensor) -> Tensor:
    """Mark the last response token of each row.

    Args:
        mask: Shape (batch, time), 1 = response token.

    Returns:
        Shape (batch, time), boolean: true once per row, and nowhere in a row whose mask is empty.
    """
    later = mask.bool().flip(-1).cumsum(-1).flip(-1)
    return mask.bool() & (later == 1)


def compose_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float, kind: KLPenalty = "kl"
) -> TokenRewards:
    """Subtract the KL penalty at every token and add the score at the last response token.

    R = score - kl_coef * KL, spread over tokens: equation 2 of https://arxiv.org/abs/1909.08593; TRL 0.11.4's
    `compute_rewards`, with padding at 0. A row without response tokens is all zeros, and its score is lost.

    Args:
        scores: Shape (batch,).
        logprobs: Shape (batch, time), of the policy that sampled.
        ref_logprobs: Shape (batch, time).
        mask: Shape (batch, time), 1 = response token.
        kl_coef: The controller's coefficient.
        kind: The KL estimator.

    Returns:
        Rewards, their KL part, and the KL itself.
    """
    kl = zero_outside(kl_penalty(logprobs, ref_logprobs, kind), mask)
    non_score_rewards = -kl_coef * kl
    rewards = non_score_rewards + zero_outside(scores.to(kl.dtype).unsqueeze(-1), last_token_mask(mask))
    return TokenRewards(rewards, non_score_rewards, kl)


def gae(rewards: Tensor, values: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalised advantage estimation, equation 16 of https://arxiv.org/abs/1506.02438.

    A_t = Σ_l (gamma * lam)^l * δ_{t+l} with δ_t = r_t + gamma * V_{t+1} - V_t and V = 0 after the last token.

    Args:
        rewards: Shape (batch, time), 0 where there is no token.
        values: Shape (batch, time), 0 where there is no token: then the estimate ends with each row's response.
        gamma: The discount.
        lam: 0 trusts the value head, 1 the rewards.

    Returns:
        Advantages, shape (batch, time), not whitened.
    """
    next_values = torch.cat([values[:, 1:], values.new_zeros(values.shape[0], 1)], dim=1)
    deltas = rewards + gamma * next_values - values
    advantages = torch.empty_like(deltas)
    running = deltas.new_zeros(deltas.shape[0])
    for step in range(deltas.shape[1] - 1, -1, -1):
        running = deltas[:, step] + gamma * lam * running
        advantages[:, step] = running
    return advantages


@torch.no_grad()
def compute_advantages(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten_rewards: bool = False,
    whiten_advantages: bool = True,
) -> Advantages:
    """Advantages and returns of a batch, TRL 0.11.4's `compute_advantages`, with padding at 0.

    Args:
        rewards: Shape (batch, time).
        values: Shape (batch, time), of the value head at rollout.
        mask: Shape (batch, time), 1 = response token; each row one run of 1s.
        gamma: The discount.
        lam: GAE's lambda.
        whiten_rewards: Scale the rewards to variance 1 first, keeping their mean.
        whiten_advantages: Whiten the advantages (not the returns).

    Returns:
        Advantages and returns, without gradient.
    """
    rewards, values = zero_outside(rewards, mask), zero_outside(values, mask)
    if whiten_rewards:
        # TRL 0.11.4 did not mask after whitening, so that GAE carried values of padding into the response.
        rewards = zero_outside(masked_whiten(rewards, mask, shift_mean=False), mask)
    advantages = gae(rewards, values, gamma, lam)
    returns = zero_outside(advantages + values, mask)
    if whiten_advantages:
        advantages = masked_whiten(advantages, mask)
    return Advantages(zero_outside(advantages, mask), returns)
