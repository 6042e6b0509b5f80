"""Lightning's own callbacks that change how training goes: made to go on exactly, or refused at the start."""

from __future__ import annotations

import difflib
import logging
import platform
from collections.abc import Iterator
from typing import Any

import torch.distributed
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from src.errors import ParleyError

log = logging.getLogger(__name__)


def refuse_inexact(trainer: Trainer) -> None:
    """Refuse what could not be resumed as if nothing had happened.

    Raises:
        ParleyError: A callback averages weights behind the Module's back.
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
    """Refuse what could not be found, once a sanity validation has reported what there is to watch.

    Raises:
        ParleyError: A metric of validation is watched that there is none of.
    """
    known = sorted(name for name in trainer.callback_metrics if name.startswith("val"))
    for watcher, monitor in _watched(trainer):
        if known and monitor.startswith("val") and monitor not in known:
            raise ParleyError(
                f"{watcher} watches {monitor!r}, which validation does not report; it reports {', '.join(known)}."
            )


def warn_of_unknown_metrics(trainer: Trainer) -> None:
    """Name what is watched and a whole step has not reported; what is logged once an epoch may come yet."""
    known = sorted(name for name in trainer.callback_metrics if not name.startswith("val"))
    for watcher, monitor in _watched(trainer):
        if not monitor.startswith("val") and monitor not in known:
            nearest = difflib.get_close_matches(monitor, known, n=1)
            hint = f" (the nearest is {nearest[0]!r})" if nearest else ""
            log.warning(
                "%s watches %r, which this step has not reported%s; the run ends at its next validation if nothing "
                "does until then.",
                watcher,
                monitor,
                hint,
            )


def keep_patience(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """EarlyStopping takes its patience from a checkpoint; the configuration's holds."""
    for stopping in _stoppings(trainer):
        if stopping.state_key in checkpoint["callbacks"]:
            checkpoint["callbacks"][stopping.state_key]["patience"] = stopping.patience


def go_on(trainer: Trainer) -> None:
    """Put back what these callbacks had done to the trainer, once their own state is loaded."""
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
    """Who watches which metric, and does not go on without it."""
    schedules = [config for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
    for watcher in [*_callbacks(trainer), *schedules]:
        monitor = getattr(watcher, "monitor", None)
        if isinstance(monitor, str) and getattr(watcher, "strict", True):
            yield type(getattr(watcher, "scheduler", watcher)).__name__, monitor


def _has_stopped(stopping: EarlyStopping) -> bool:
    if stopping.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
        return stopping.wait_count >= stopping.patience  # unless it was given more since
    return stopping.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
