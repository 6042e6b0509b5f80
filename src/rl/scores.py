"""Scaling, clipping and penalties of a reward's scores, one per response, before they become rewards per token."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from src.rl.masked import masked_moments, zero_outside

_ROUNDING = 1e-6
"""Scores whose standard deviation is below this share of their mean count as equal, given float32's precision."""


class RunningMoments:
    """Mean and standard deviation of every score seen so far, over all processes.

    Chan's parallel update, as TRL 0.11.4's `RunningMoments`; scores that are not finite are left out, since a single
    one would make the moments NaN for the rest of the run.

    Attributes:
        mean: The running mean, 0 before the first score.
        var: The running variance, uncorrected; 1 before the first score.
        count: How many scores were seen.
    """

    def __init__(self) -> None:
        self.mean = 0.0
        self.var = 1.0
        self.count = 0.0

    @property
    def std(self) -> float:
        """The running standard deviation, with Bessel's correction; 1 as long as all scores are equal."""
        if self.count < 2:
            return 1.0
        std = math.sqrt(self.var * self.count / (self.count - 1))
        return std if std > _ROUNDING * abs(self.mean) else 1.0

    @torch.no_grad()
    def update(self, scores: Tensor) -> None:
        """Add a batch of scores.

        Args:
            scores: Shape (batch,).
        """
        moments = masked_moments(scores.float(), torch.isfinite(scores), unbiased=False)
        mean, var, count = (float(figure) for figure in moments)
        if count == 0:
            return
        total = self.count + count
        delta = mean - self.mean
        squares = self.var * self.count + var * count + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.var = squares / total
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"mean": self.mean, "var": self.var, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.mean, self.var, self.count = float(state["mean"]), float(state["var"]), float(state["count"])


def scale_scores(scores: Tensor, moments: RunningMoments, center: bool = False) -> Tensor:
    """Divide by the running standard deviation, after subtracting the running mean if `center` is set.

    As long as all scores are equal they are divided by 1. TRL 0.11.4's
    `use_score_scaling` and `use_score_norm`; see also appendix D of Engstrom et al.,
    https://arxiv.org/abs/2005.12729.

    Args:
        scores: Shape (batch,).
        moments: The moments of all scores so far, including these.
        center: Subtract the mean.

    Returns:
        Shape (batch,).
    """
    shift = moments.mean if center else 0.0
    return (scores - shift) / (moments.std + torch.finfo(scores.dtype).eps)


def clip_scores(scores: Tensor, limit: float) -> Tensor:
    """Clip scores to [-limit, limit]; shape (batch,)."""
    return scores.clamp(-limit, limit)


def penalise_missing_eos(scores: Tensor, has_eos: Tensor, penalty: float) -> Tensor:
    """Subtract a penalty from the scores of responses that were cut off before EOS.

    TRL's `missing_eos_penalty` (since 0.10, `PPOv2Trainer`).

    Args:
        scores: Shape (batch,).
        has_eos: Shape (batch,), true where the response ends in EOS.
        penalty: The amount to subtract, in units of the score.

    Returns:
        Shape (batch,).
    """
    return torch.where(has_eos.bool(), scores, scores - penalty)


class ScoreShaper:
    """Applies scaling, clipping and the penalty for a missing EOS, in this order.

    The penalty comes last so that it neither affects the running moments nor is clipped.

    Args:
        use_score_scaling: Divide by the running standard deviation.
        use_score_norm: With scaling, subtract the running mean too.
        score_clip: Clip to ± this after scaling; no clipping when left out.
        missing_eos_penalty: Subtracted from scores of responses without EOS; nothing when left out.

    Attributes:
        moments: The moments of the raw scores so far; updated only if scaling is on.
    """

    def __init__(
        self,
        use_score_scaling: bool = False,
        use_score_norm: bool = False,
        score_clip: float | None = None,
        missing_eos_penalty: float | None = None,
    ) -> None:
        self.use_score_scaling = use_score_scaling
        self.use_score_norm = use_score_norm
        self.score_clip = score_clip
        self.missing_eos_penalty = missing_eos_penalty
        self.moments = RunningMoments()

    def __call__(self, scores: Tensor, has_eos: Tensor) -> Tensor:
        """Shape one batch of scores, updating the running moments.

        A score that is not finite does not affect the moments, and becomes 0 in the result.

        Args:
            scores: Shape (batch,), raw.
            has_eos: Shape (batch,), true where the response ends in EOS.

        Returns:
            Shape (batch,).
        """
        finite = torch.isfinite(scores)
        if self.use_score_scaling:
            self.moments.update(scores)
            scores = scale_scores(scores, self.moments, center=self.use_score_norm)
        if self.score_clip is not None:
            scores = clip_scores(scores, self.score_clip)
        if self.missing_eos_penalty is not None:
            scores = penalise_missing_eos(scores, has_eos, self.missing_eos_penalty)
        return zero_outside(scores, finite)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"moments": self.moments.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.moments.load_state_dict(state["moments"])
