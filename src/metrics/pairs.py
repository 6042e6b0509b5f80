"""Metrics of a reward model on preference pairs: accuracy, margin, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_calibration_error
from torchmetrics.utilities import dim_zero_cat

Z = 1.959963984540054  # 95 % of a normal distribution lie within ± this many standard deviations
BINS = 20  # equal bins of the confidence from 0 to 1; since that is at least 1/2, half of them are used


def wilson_interval(successes: float, trials: int, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a proportion (https://doi.org/10.1080/01621459.1927.10502953), by default at 95 %.

    Args:
        successes: The number of successes.
        trials: The number of trials; 0 gives NaN.
        z: The confidence, in standard deviations of a normal distribution.

    Returns:
        The interval's lower and upper end.
    """
    if not trials:
        return math.nan, math.nan
    share, extra = successes / trials, z * z / trials
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / trials + extra / (4 * trials))
    return middle - half, middle + half


class PairFigures(Metric):
    """Metrics of the rewards of preference pairs over a split; the same for any number of processes.

    - `accuracy`: The share of pairs whose chosen answer has the higher reward (ties do not count), with Wilson's 95 %
      interval, `accuracy_low` and `accuracy_high`.
    - `margin`: The mean of chosen minus rejected.
    - `calibration_error`: The expected calibration error (https://arxiv.org/abs/1706.04599), over bins of 0.05, of the
      confidence σ(|chosen − rejected|) that the answer with the higher reward is the better one.
    - `chosen_reward`, `rejected_reward`: Their means.
    - `loss`: Its mean.
    """

    is_differentiable = False
    full_state_update = False
    indices: list[Tensor]
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("indices", [], dist_reduce_fx="cat")
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, index: Sequence[int], chosen: Tensor, rejected: Tensor, loss: Tensor) -> None:
        """Add pairs.

        Args:
            index: The pairs' rows in the split, by which they are sorted before summing; may be empty.
            chosen: Rewards of the better answers, (pairs,).
            rejected: Rewards of the others, (pairs,).
            loss: The loss of each pair, (pairs,).
        """
        self.indices.append(torch.tensor(list(index), dtype=torch.long, device=chosen.device))
        self.rows.append(torch.stack([chosen, rejected, loss], dim=1).detach().float())

    def compute(self) -> dict[str, float]:
        """The metrics by name; NaN if there were no pairs."""
        order = dim_zero_cat(self.indices).cpu().argsort()
        rows = dim_zero_cat(self.rows).cpu().double()[order]
        chosen, rejected, loss = rows.unbind(1)
        margins, right = chosen - rejected, chosen > rejected
        low, high = wilson_interval(int(right.sum()), len(right))
        confidence = margins.abs().sigmoid()
        known = len(rows) > 0 and bool(rows.isfinite().all())
        error = binary_calibration_error(confidence, right.long(), n_bins=BINS) if known else math.nan
        figures: dict[str, Tensor | float] = {
            "loss": loss.mean(),
            "accuracy": right.double().mean(),
            "accuracy_low": low,
            "accuracy_high": high,
            "margin": margins.mean(),
            "calibration_error": error,
            "chosen_reward": chosen.mean(),
            "rejected_reward": rejected.mean(),
        }
        return {name: float(figure) for name, figure in figures.items()}
