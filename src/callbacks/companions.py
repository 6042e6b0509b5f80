"""Lightning's own callbacks that affect training: made to resume exactly, or refused at the start."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from typing import Any

import torch.distributed
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from src.errors import ParleyError, nearest_to

log = logging.getLogger(__name__)


def refuse_inexact(trainer: Trainer) -> None:
    """Refuse callbacks with which a run could not resume exactly.

    Raises:
        ParleyError: The trainer has `StochasticWeightAveraging`.
    """
    if any(isinstance(callback, StochasticWeightAveraging) for callback in _callbacks(trainer)):
        raise ParleyError(
            "StochasticWeightAveraging copies the model before it is loaded, and a resumed run averages other weights; "
            "leave it out of trainer.callbacks."
        )


def refuse_other_checkpoints(trainer: Trainer) -> None:
    """Refuse processes that are about to go on from different checkpoints; every process must call this.

    Raises:
        ParleyError: They are, as machines do that do not see one disk.
    """
    if trainer.world_size == 1:
        return
    own = (platform.node(), str(trainer.ckpt_path) if trainer.ckpt_path else "no checkpoint")
    found = [("", "")] * trainer.world_size
    torch.distributed.all_gather_object(found, own)
    node, checkpoint = found[0]
    for other, its in found[1:]:
        if its != checkpoint:
            raise ParleyError(
                f"the first process, on {node}, goes on from {checkpoint}, and one on {other} from {its}; let all "
                "machines see one disk, or give each the same checkpoint by --ckpt_path."
            )


def refuse_unknown_metrics(trainer: Trainer) -> None:
    """Refuse monitored validation metrics that the sanity check has not reported.

    Raises:
        ParleyError: A callback or schedule monitors a validation metric that does not exist.
    """
    known = sorted(name for name in trainer.callback_metrics if name.startswith("val"))
    for watcher, monitor in _watched(trainer):
        if known and monitor.startswith("val") and monitor not in known:
            raise ParleyError(
                f"{watcher} watches {monitor!r}, which validation does not report; it reports {', '.join(known)}."
            )


def warn_of_unknown_metrics(trainer: Trainer) -> None:
    """Warn of monitored training metrics that the first step has not logged; they may still come once per epoch."""
    known = sorted(name for name in trainer.callback_metrics if not name.startswith("val"))
    for watcher, monitor in _watched(trainer):
        if not monitor.startswith("val") and monitor not in known:
            log.warning(
                "%s watches %r, which this step has not reported%s; the run ends at its next validation if nothing "
                "does until then.",
                watcher,
                monitor,
                nearest_to(monitor, known),
            )


def keep_patience(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Overwrite the patience that EarlyStopping would load from the checkpoint by the configured one."""
    for stopping in _stoppings(trainer):
        if stopping.state_key in checkpoint["callbacks"]:
            checkpoint["callbacks"][stopping.state_key]["patience"] = stopping.patience


def go_on(trainer: Trainer) -> None:
    """Repeat what these callbacks had done to the trainer (accumulation, stopping), once their state is loaded."""
    for callback in _callbacks(trainer):
        if isinstance(callback, GradientAccumulationScheduler):
            trainer.accumulate_grad_batches = callback.get_accumulate_grad_batches(trainer.current_epoch)
    if any(_has_stopped(stopping) for stopping in _stoppings(trainer)):
        trainer.should_stop = True


def _callbacks(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]


def _stoppings(trainer: Trainer) -> list[EarlyStopping]:
    return [callback for callback in _callbacks(trainer) if isinstance(callback, EarlyStopping)]


def _watched(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Pairs of a callback's or schedule's name and the metric that it cannot do without."""
    schedules = [config for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
    for watcher in [*_callbacks(trainer), *schedules]:
        monitor = getattr(watcher, "monitor", None)
        if isinstance(monitor, str) and getattr(watcher, "strict", True):
            yield type(getattr(watcher, "scheduler", watcher)).__name__, monitor


def _has_stopped(stopping: EarlyStopping) -> bool:
    if stopping.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
        return stopping.wait_count >= stopping.patience  # the patience may have been raised since
    return stopping.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
