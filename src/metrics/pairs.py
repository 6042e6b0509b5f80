"""How well rewards tell the better of two answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_calibration_error
from torchmetrics.utilities import dim_zero_cat

Z = 1.959963984540054  # of a normal distribution, 95 % lie within
BINS = 20  # of confidence from 0 to 1; that of the answer which is taken for the better one is at least 1/2


def wilson_interval(successes: float, trials: int, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a proportion (https://doi.org/10.1080/01621459.1927.10502953), 95 % wide as it stands.

    Args:
        successes: Of the trials.
        trials: How many; NaN for none.
        z: How many standard deviations of a normal distribution the confidence is.

    Returns:
        Its lower and upper end.
    """
    if not trials:
        return math.nan, math.nan
    share, extra = successes / trials, z * z / trials
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / trials + extra / (4 * trials))
    return middle - half, middle + half


class PairFigures(Metric):
    """Figures of pairs of rewards over a whole split and all processes; the same over any number of them.

    - `accuracy`: The share of pairs whose chosen answer has the higher reward (a tie has not), with Wilson's interval
      at 95 %, `accuracy_low` and `accuracy_high`.
    - `margin`: The mean of chosen minus rejected.
    - `calibration_error`: Of the confidence σ(|chosen − rejected|) that the answer with the higher reward is the better
      one: the expected calibration error (https://arxiv.org/abs/1706.04599) over bins of 0.05.
    - `chosen_reward`, `rejected_reward`: Means.
    - `loss`: The mean.
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
            index: Their rows in the split, so that figures do not depend on the order; may be none.
            chosen: Rewards of the better answers, (pairs,).
            rejected: Rewards of the others, (pairs,).
            loss: (pairs,).
        """
        self.indices.append(torch.tensor(list(index), dtype=torch.long, device=chosen.device))
        self.rows.append(torch.stack([chosen, rejected, loss], dim=1).detach().float())

    def compute(self) -> dict[str, float]:
        """The figures by name; NaN where there was no pair."""
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
