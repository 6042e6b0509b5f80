"""Mean, variance and whitening over the response tokens of a batch.

Masked-out values never affect a statistic, not even NaN or infinity, and an empty mask gives 0 rather than NaN, so
that a process whose minibatch holds no response token still takes part in the step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Statistics of the masked values, each of shape ().

    Attributes:
        mean: Their mean; 0 for an empty mask.
        var: Their variance, with Bessel's correction where it was asked for; 0 for fewer than two values.
        size: How many there are.
    """

    mean: Tensor
    var: Tensor
    size: Tensor


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the values where the mask is 1, as TRL 0.11.4's `masked_mean`.

    Args:
        values: Shape (...).
        mask: Shape (...), 1 where a value counts.
        dim: Mean along this dimension alone; over everything when left out.

    Returns:
        Shape () without `dim`, else (...) without that dimension; 0 where the mask is empty.
    """
    kept = zero_outside(values, mask)
    counts = mask.to(kept.dtype)
    total, count = (kept.sum(), counts.sum()) if dim is None else (kept.sum(dim), counts.sum(dim))
    return total / count.clamp(min=1)


def masked_moments(values: Tensor, mask: Tensor, unbiased: bool = True) -> Moments:
    """Mean and variance of the values where the mask is 1, by the two-pass formula.

    The second pass sums the squares of the deviations from the mean, which keeps precision for values far from 0; the
    one-pass formula, E[x²] - E[x]², does not.

    Args:
        values: Shape (...).
        mask: Shape (...), 1 where a value counts.
        unbiased: Apply Bessel's correction, n / (n - 1), as TRL 0.11.4's `masked_var` does by default.

    Returns:
        The moments.
    """
    kept = zero_outside(values, mask)
    count = mask.to(kept.dtype).sum()
    mean = kept.sum() / count.clamp(min=1)
    squares = zero_outside(kept - mean, mask).square().sum()
    return Moments(mean=mean, var=squares / (count - float(unbiased)).clamp(min=1), size=count)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Bring the masked values to variance 1 and, with `shift_mean`, to mean 0.

    `(values - mean) / sqrt(var + 1e-8)`, as TRL 0.11.4's `masked_whiten` and OpenAI's lm-human-preferences, see
    https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo ("Whiten rewards"). As there, values
    outside the mask are transformed too: mask the result where that matters.

    Args:
        values: Shape (...).
        mask: Shape (...), 1 where a value counts in the statistics.
        shift_mean: Subtract the mean; otherwise the values keep their mean.

    Returns:
        Shape (...).
    """
    mean, var, _ = masked_moments(values, mask)
    whitened = (values - mean) * torch.rsqrt(var + 1e-8)
    return whitened if shift_mean else whitened + mean


def zero_outside(values: Tensor, mask: Tensor) -> Tensor:
    """The values where the mask is 1 and exactly 0 elsewhere, even where they are NaN; shape (...)."""
    return torch.where(mask.bool(), values, torch.zeros((), dtype=values.dtype, device=values.device))
