"""Warm-up and decay of the learning rate."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from src.errors import ParleyError


class WarmupSchedule(LambdaLR):
    """Rises to the optimiser's learning rate, then decays; stepped after every optimiser step.

    Args:
        optimizer: Whose learning rate to change.
        warmup: Steps of linear warm-up (an integer of 1 or more), or the share of training that warms up (below 1).
        decay: What follows: `linear` or `cosine` to 0 at the end of training, or `constant`.
        num_training_steps: All optimiser steps; the Module fills it in from the trainer when left out.

    Raises:
        ParleyError: `warmup` is negative, or a number such as 1.5 that is neither steps nor a share.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0.0,
        decay: Literal["linear", "cosine", "constant"] = "linear",
        num_training_steps: int | None = None,
    ) -> None:
        if warmup < 0 or (warmup > 1 and warmup != int(warmup)):
            raise ParleyError(f"warmup is {warmup}; give whole steps (such as 100) or a share below 1 (such as 0.1).")
        self.warmup = warmup
        self.decay = decay
        self.num_training_steps = num_training_steps
        super().__init__(optimizer, self.factor)

    def plan(self, num_training_steps: int) -> None:
        """Learn how long training takes, and set the present step's rate accordingly."""
        self.num_training_steps = num_training_steps
        self.go_to(self.last_epoch)

    def go_to(self, step: int) -> None:
        """Move to an optimiser step, and set its rate."""
        self.last_epoch = step
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * self.factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied with at an optimiser step."""
        total = self.num_training_steps
        warmup_steps = int(self.warmup) if self.warmup >= 1 else round(self.warmup * (total or 0))
        if step < warmup_steps:
            return step / warmup_steps
        if self.decay == "constant" or total is None:
            return 1.0
        progress = (step - warmup_steps) / max(1, total - warmup_steps)
        if self.decay == "linear":
            return max(0.0, 1.0 - progress)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))


def refuse_too_short(schedule: LRScheduler | ReduceLROnPlateau, epochs: int | None) -> None:
    """Refuse a schedule that would end in an error before training does: one of PyTorch's, stepped once an epoch.

    Args:
        schedule: The schedule; OneCycleLR counts its steps in `total_steps`.
        epochs: How many training has at most; None or -1 where it does not count them.

    Raises:
        ParleyError: It has fewer steps than there are epochs.
    """
    steps = getattr(schedule, "total_steps", None)
    if steps is not None and epochs is not None and steps < epochs:
        raise ParleyError(
            f"{type(schedule).__name__} has {steps} steps and is stepped {epochs} times, once an epoch; raise its "
            "total_steps, or take WarmupSchedule, which knows how long training is."
        )
