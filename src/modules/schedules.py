"""Warm-up and decay of the learning rate."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from transformers import get_scheduler

from src.errors import ParleyError
from src.ranges import Range

Decay = Literal[
    "linear",
    "cosine",
    "constant",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]


class WarmupSchedule(LambdaLR):
    """One of transformers' schedules, with the length of training from the trainer; stepped at every optimiser step.

    Args:
        optimizer: The optimiser whose learning rate is scheduled.
        warmup: Steps of linear warm-up (an integer of 1 or more), or the share of training that warms up (below 1).
        decay: What follows: `linear` or `cosine` to 0 at the end of training, `constant`, or another of transformers'.
        num_training_steps: All optimiser steps; the Module fills it in from the trainer when left out.
        settings: Further arguments of the schedule, by transformers' names, such as `min_lr_rate` or `num_decay_steps`.

    Raises:
        ParleyError: `warmup` is negative, or a number such as 1.5 that is neither steps nor a share; or the schedule
            does not take these settings.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0.0,
        decay: Decay = "linear",
        num_training_steps: int | None = None,
        settings: dict[str, float] | None = None,
    ) -> None:
        Range(0, note="whole steps such as 100, or a share below 1").refuse("warmup", warmup)
        if warmup > 1 and warmup != int(warmup):
            raise ParleyError(f"warmup is {warmup}; it must be whole steps, such as 100, or a share below 1.")
        self.warmup = warmup
        self.decay = decay
        self.num_training_steps = num_training_steps
        self.settings = settings or {}
        _check(decay, self.settings)
        super().__init__(optimizer, self.factor)

    def plan(self, num_training_steps: int) -> None:
        """Set the number of training steps, and the current step's rate accordingly."""
        self.num_training_steps = num_training_steps
        self.go_to(self.last_epoch)

    def go_to(self, step: int) -> None:
        """Move to an optimiser step and set its rate."""
        self.last_epoch = step
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * self.factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def factor(self, step: int) -> float:
        """The factor of the learning rate at an optimiser step."""
        total = self.num_training_steps
        warmup_steps = int(self.warmup) if self.warmup >= 1 else round(self.warmup * (total or 0))
        name = "constant" if total is None else self.decay
        rate = float(self.optimizer.defaults["lr"])
        return _factors(name, warmup_steps, total, rate, tuple(sorted(self.settings.items())))(step)


@functools.lru_cache(maxsize=8)
def _factors(
    decay: str, warmup_steps: int, total: int | None, rate: float, settings: tuple[tuple[str, float], ...]
) -> Callable[[int], float]:
    """The function from step to factor of transformers' schedule; cached, since a checkpoint cannot hold it."""
    nobody = SGD([torch.zeros(1)], lr=rate)  # a schedule changes its optimiser's rate when it is made
    name = "constant_with_warmup" if decay == "constant" else decay
    schedule: Any = get_scheduler(name, nobody, warmup_steps, total, dict(settings))
    factors: Callable[[int], float] = schedule.lr_lambdas[0]
    return factors


def _check(decay: str, settings: dict[str, float]) -> None:
    """Check the settings of a schedule early.

    Raises:
        ParleyError: A setting is unknown or missing.
    """
    try:
        _factors(decay, 1, 10, 1.0, tuple(sorted(settings.items())))
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ParleyError(f"the schedule {decay!r} does not take settings {settings} ({reason}).") from error


def refuse_too_short(schedule: LRScheduler | ReduceLROnPlateau, epochs: int | None) -> None:
    """Refuse one of PyTorch's schedules, stepped once per epoch, that would raise an error before training ends.

    Args:
        schedule: The schedule; OneCycleLR counts its steps in `total_steps`.
        epochs: The most epochs of training; None or -1 for no limit.

    Raises:
        ParleyError: The schedule has fewer steps than there are epochs.
    """
    steps = getattr(schedule, "total_steps", None)
    if steps is not None and epochs is not None and steps < epochs:
        raise ParleyError(
            f"{type(schedule).__name__} has {steps} steps and is stepped {epochs} times, once an epoch; raise its "
            "total_steps, or take WarmupSchedule, which knows how long training is."
        )
