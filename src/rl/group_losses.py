"""The losses of RLOO and GRPO on one minibatch, and which probability ratios were clipped."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from src.rl.kl import kl_penalty
from src.rl.masked import masked_mean, zero_outside

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]
LOSS_TYPES: tuple[str, ...] = get_args(LossType)


class ClippedObjective(NamedTuple):
    """A clipped loss and which ratios were clipped; all of the shape of the ratio.

    Attributes:
        loss: The negative of the clipped objective.
        low: True where the ratio was clipped from below.
        high: True where it was clipped from above.
    """

    loss: Tensor
    low: Tensor
    high: Tensor


def clipped_objective(
    log_ratio: Tensor, advantages: Tensor, epsilon: float = 0.2, epsilon_high: float | None = None
) -> ClippedObjective:
    """PPO's clipped surrogate with separate lower and upper bounds ("clip-higher", https://arxiv.org/abs/2503.14476).

    Args:
        log_ratio: New minus old log-probabilities, of tokens or of whole responses.
        advantages: Of a shape that broadcasts with `log_ratio`.
        epsilon: How far below 1 the ratio may be before it is clipped.
        epsilon_high: How far above 1 it may be; `epsilon` when left out.
    """
    above = epsilon if epsilon_high is None else epsilon_high
    ratio = log_ratio.exp()
    loss = -torch.min(ratio * advantages, ratio.clamp(1 - epsilon, 1 + above) * advantages)
    return ClippedObjective(loss, (ratio < 1 - epsilon) & (advantages < 0), (ratio > 1 + above) & (advantages > 0))


def rloo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
) -> ClippedObjective:
    """RLOO's loss of each response, with the probability ratio of the whole response, as TRL 1.16's `RLOOTrainer`.

    Args:
        logprobs: Shape (batch, time), of the policy now, with gradient.
        old_logprobs: Shape (batch, time), of the policy that sampled.
        advantages: Shape (batch,).
        mask: Shape (batch, time), 1 = response token.
        epsilon: Clip below.
        epsilon_high: Clip above; `epsilon` when left out.

    Returns:
        Shape (batch,); the loss is their mean.
    """
    log_ratio = zero_outside(logprobs - old_logprobs, mask).sum(-1)
    return clipped_objective(log_ratio, advantages, epsilon, epsilon_high)


def grpo_token_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    use_bias_correction_kl: bool = True,
) -> ClippedObjective:
    """GRPO's loss of each token, equation 3 of https://arxiv.org/abs/2402.03300, as TRL 1.16's `GRPOTrainer`.

    Args:
        logprobs: Shape (batch, time), of the policy now, with gradient.
        old_logprobs: Shape (batch, time), of the policy that sampled.
        ref_logprobs: Shape (batch, time), of the reference.
        advantages: Shape (batch,).
        mask: Shape (batch, time), 1 = response token.
        beta: Weight of the KL to the reference (Schulman's k3).
        epsilon: Clip below.
        epsilon_high: Clip above; `epsilon` when left out.
        use_bias_correction_kl: Multiply the KL by the ratio, which makes its gradient that of the KL itself
            (https://arxiv.org/abs/2512.02556).

    Returns:
        Shape (batch, time), 0 outside the mask.
    """
    log_ratio = zero_outside(logprobs - old_logprobs, mask)
    tokens = clipped_objective(log_ratio, zero_outside(advantages.unsqueeze(-1), mask), epsilon, epsilon_high)
    if not beta:
        return tokens
    kl = zero_outside(kl_penalty(zero_outside(logprobs, mask), zero_outside(ref_logprobs, mask), "k3"), mask)
    if use_bias_correction_kl:
        kl = kl * log_ratio.exp()
    return tokens._replace(loss=tokens.loss + beta * kl)


def aggregate(
    token_loss: Tensor, mask: Tensor, loss_type: LossType, *, max_new_tokens: int, tokens_per_minibatch: float
) -> Tensor:
    """Reduce the losses of tokens to a scalar.

    Args:
        token_loss: Shape (batch, time), 0 outside the mask.
        mask: Shape (batch, time), 1 where a token counts.
        loss_type: `grpo`: the mean over responses of each response's mean, so that tokens of long responses count for
            less; `bnpo`: the mean over the minibatch's tokens; `dr_grpo`: the sum divided by batch times
            `max_new_tokens`; `dapo`: the sum divided by `tokens_per_minibatch`.
        max_new_tokens: The greatest length of a response.
        tokens_per_minibatch: The mean number of response tokens in a minibatch of this rollout.

    Returns:
        Shape ().
    """
    if loss_type == "grpo":
        return masked_mean(token_loss, mask, dim=-1).mean()
    if loss_type == "bnpo":
        return masked_mean(token_loss, mask)
    if loss_type == "dr_grpo":
        return token_loss.sum() / (token_loss.shape[0] * max_new_tokens)
    return token_loss.sum() / max(1.0, tokens_per_minibatch)
