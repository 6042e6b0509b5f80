"""Everything that PPO learns from in one iteration."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from src.rl.advantages import compose_rewards, compute_advantages
from src.rl.config import PPOConfig
from src.rl.drawable import Drawable
from src.rl.masked import Reduce, zero_outside

_PER_QUERY_TOKEN = ("query_ids", "query_mask")
_PER_RESPONSE = ("scores", "shaped_scores")


@dataclass(frozen=True, eq=False)
class Rollout:
    """One iteration's responses and all that was computed about them; everything is detached.

    Shapes: query tokens (batch, query_time), response tokens (batch, time), one figure a response (batch,).
    Figures per response token are 0 where `response_mask` is 0.

    Attributes:
        query_ids: Token ids of the prompts, padded on either side.
        query_mask: 1 = prompt token.
        response_ids: Token ids of the responses, padded on the right.
        response_mask: 1 = response token, the EOS that ended it included.
        drawable: (batch, time) what could be drawn at each place; all probabilities are over that.
        logprobs: Of the policy that sampled.
        ref_logprobs: Of the reference.
        values: Of the value head.
        scores: One a response, as the reward gave them.
        shaped_scores: After scaling, clipping and the penalty for a missing EOS.
        kl: The KL estimate per token.
        rewards: Per token: KL penalty, and the shaped score on the last token.
        advantages: Per token.
        returns: Per token.
    """

    query_ids: Tensor
    query_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor
    drawable: Drawable
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    scores: Tensor
    shaped_scores: Tensor
    kl: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            expected = self._expected_shape(field.name)
            if getattr(self, field.name).shape != expected:
                shape = tuple(getattr(self, field.name).shape)
                raise ValueError(f"{field.name} has the shape {shape}; it must be {tuple(expected)}.")

    def __len__(self) -> int:
        return self.response_ids.shape[0]

    def select(self, indices: Tensor) -> Rollout:
        """Some of the responses, without the padding that only the others needed.

        Args:
            indices: Shape (n,), which rows, in the order wanted; on any device.

        Returns:
            A rollout of n rows, whose query and response times are those of its own longest rows, and at least 1.
        """
        indices = indices.to(self.response_ids.device)
        query, response = _columns(self.query_mask[indices]), _columns(self.response_mask[indices])
        chosen = {}
        for field in fields(self):
            rows = getattr(self, field.name)[indices]
            if field.name not in _PER_RESPONSE:
                rows = rows[:, query if field.name in _PER_QUERY_TOKEN else response]
            chosen[field.name] = rows
        return Rollout(**chosen)

    def _expected_shape(self, name: str) -> torch.Size:
        if name in _PER_RESPONSE:
            return self.response_ids.shape[:1]
        if name in _PER_QUERY_TOKEN:
            return torch.Size((len(self), self.query_ids.shape[1]))
        return torch.Size((len(self), self.response_mask.shape[1]))


@torch.no_grad()
def build_rollout(
    *,
    query_ids: Tensor,
    query_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    drawable: Drawable,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    values: Tensor,
    scores: Tensor,
    shaped_scores: Tensor,
    kl_coef: float,
    config: PPOConfig,
    reduce: Reduce | None = None,
) -> Rollout:
    """Compute rewards, advantages and returns, and put everything into one place.

    The figures are computed in float32, whatever the models' precision.

    Args:
        query_ids: Shape (batch, query_time).
        query_mask: Shape (batch, query_time).
        response_ids: Shape (batch, time).
        response_mask: Shape (batch, time).
        drawable: Shape (batch, time).
        logprobs: Shape (batch, time).
        ref_logprobs: Shape (batch, time).
        values: Shape (batch, time).
        scores: Shape (batch,), raw.
        shaped_scores: Shape (batch,), from `config.score_shaper()`.
        kl_coef: The KL controller's value.
        config: The hyper-parameters.
        reduce: Sums over processes: whitening is over the global batch.

    Returns:
        The rollout.
    """
    mask = response_mask
    scores, shaped_scores = scores.to(mask.device).float(), shaped_scores.to(mask.device).float()
    logprobs, ref_logprobs, values = (zero_outside(each.float(), mask) for each in (logprobs, ref_logprobs, values))
    tokens = compose_rewards(shaped_scores, logprobs, ref_logprobs, mask, kl_coef, config.kl_penalty)
    learned = compute_advantages(
        tokens.rewards,
        values,
        mask,
        gamma=config.gamma,
        lam=config.lam,
        whiten_rewards=config.whiten_rewards,
        whiten_advantages=config.whiten_advantages,
        reduce=reduce,
    )
    return Rollout(
        query_ids=query_ids,
        query_mask=query_mask,
        response_ids=response_ids,
        response_mask=mask,
        drawable=drawable,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        scores=scores,
        shaped_scores=shaped_scores,
        kl=tokens.kl,
        rewards=tokens.rewards,
        advantages=learned.advantages,
        returns=learned.returns,
    )


def _columns(mask: Tensor) -> slice:
    """From the first to the last column in which any row has a token; one column where none has."""
    used = mask.bool().any(dim=0).nonzero().flatten().tolist()
    return slice(used[0], used[-1] + 1) if used else slice(0, 1)
