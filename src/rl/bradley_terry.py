"""The Bradley-Terry model of preferences: an answer is preferred with the probability σ(its reward − the other's)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    center_coefficient: float = 0.0,
) -> Tensor:
    """Cross-entropy of a reward model's preferences, pair by pair.

    With d = chosen − rejected − margin it is −(1 − ε) log σ(d) − ε log σ(−d) + c (chosen + rejected)². The last term
    centres the rewards around 0, which differences alone leave open (https://arxiv.org/abs/2312.09244). The margin is
    Llama 2's (https://arxiv.org/abs/2307.09288, section 3.2.2); the smoothing is for labels that are wrong with
    probability ε (https://arxiv.org/abs/2305.18290, cDPO).

    Args:
        chosen: Rewards of the better answers, (pairs,).
        rejected: Rewards of the others, (pairs,).
        margin: By how much the better answers' rewards should exceed the others', (pairs,); 0 when left out.
        label_smoothing: ε, from 0 to 1.
        center_coefficient: c, the weight of the centring term.

    Returns:
        The loss of each pair, (pairs,).
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    loss = -(1 - label_smoothing) * F.logsigmoid(difference)
    if label_smoothing:
        loss = loss - label_smoothing * F.logsigmoid(-difference)
    if center_coefficient:
        loss = loss + center_coefficient * (chosen + rejected).square()
    return loss
