"""Estimators of the policy's KL to its reference, and controllers of the KL coefficient."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from src.errors import ParleyError
from src.rl.masked import zero_outside

KLPenalty = Literal["kl", "abs", "mse", "k3"]
KL_PENALTIES: tuple[str, ...] = get_args(KLPenalty)


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, kind: KLPenalty = "kl") -> Tensor:
    """Estimate KL(policy || reference) for each token, from the one token that was sampled.

    With d = logprobs - ref_logprobs (http://joschu.net/blog/kl-approx.html; names of TRL 0.11.4's `_kl_penalty`):

    - `kl`: d, Schulman's k1. Unbiased; single tokens may be negative.
    - `abs`: |d|.
    - `mse`: d² / 2, Schulman's k2. Biased, of low variance.
    - `k3`: exp(-d) - 1 + d. Unbiased and never negative.

    Args:
        logprobs: Shape (batch, time), of the policy.
        ref_logprobs: Shape (batch, time), of the reference.
        kind: The estimator.

    Returns:
        Shape (batch, time).

    Raises:
        ParleyError: There is no such estimator.
    """
    difference = logprobs - ref_logprobs
    if kind == "kl":
        return difference
    if kind == "abs":
        return difference.abs()
    if kind == "mse":
        return 0.5 * difference.square()
    if kind == "k3":
        return (torch.expm1(-difference) + difference).clamp(min=0)  # rounding may give -1e-15
    raise ParleyError(f"there is no KL penalty {kind!r}; choose one of: {', '.join(KL_PENALTIES)}.")


def sequence_kl(kl: Tensor, mask: Tensor) -> Tensor:
    """KL of each whole response: the sum over its tokens.

    Their mean is TRL's `objective/kl`, which the adaptive controller brings to its target.

    Args:
        kl: Shape (batch, time), per token.
        mask: Shape (batch, time), 1 = response token.

    Returns:
        Shape (batch,); 0 for an empty response.
    """
    return zero_outside(kl, mask).sum(dim=-1)


class KLController(ABC):
    """Holds the coefficient of the KL penalty.

    Attributes:
        value: The coefficient for the next rollout.
    """

    value: float

    @abstractmethod
    def update(self, current: float, n_steps: int) -> None:
        """Adapt the coefficient after an iteration.

        Args:
            current: The mean sequence KL of the global batch, in nats. Every process must pass the same value.
            n_steps: The number of responses in the global batch.
        """

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.value = float(state["value"])


class FixedKLController(KLController):
    """A constant coefficient.

    Args:
        kl_coef: The coefficient.
    """

    def __init__(self, kl_coef: float) -> None:
        self.value = kl_coef

    def update(self, current: float, n_steps: int) -> None:
        """Do nothing: the coefficient is constant."""


class AdaptiveKLController(KLController):
    """Raises the coefficient while KL is above its target and lowers it while below.

    `value *= 1 + clip(current / target - 1, ±0.2) * n_steps / horizon`: section 2.2 of Ziegler et al., "Fine-Tuning
    Language Models from Human Preferences" (https://arxiv.org/abs/1909.08593), as in TRL 0.11.4.

    Args:
        init_kl_coef: The coefficient at the start.
        target: The mean sequence KL to aim for, in nats.
        horizon: The number of responses over which the coefficient may change by 20 %.
    """

    def __init__(self, init_kl_coef: float = 0.2, target: float = 6.0, horizon: float = 10_000) -> None:
        self.value = init_kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, current: float, n_steps: int) -> None:
        """Adapt the coefficient; a KL that is not finite is ignored, so that one bad batch does not end the run."""
        if not math.isfinite(current):
            return
        error = min(max(current / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * n_steps / self.horizon
