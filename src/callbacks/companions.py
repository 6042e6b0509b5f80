"""Lightning's own callbacks that change how training goes: made to go on exactly, or refused at the start."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from src.errors import ParleyError


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


def refuse_unknown_metrics(trainer: Trainer) -> None:
    """Refuse what EarlyStopping could not find, once a sanity validation has reported what there is to watch.

    Raises:
        ParleyError: It watches a metric of validation that there is none of.
    """
    known = sorted(name for name in trainer.callback_metrics if name.startswith("val"))
    for stopping in _stoppings(trainer):
        if known and stopping.strict and stopping.monitor.startswith("val") and stopping.monitor not in known:
            raise ParleyError(
                f"EarlyStopping watches {stopping.monitor!r}, which validation does not report; it reports "
                f"{', '.join(known)}."
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


def _has_stopped(stopping: EarlyStopping) -> bool:
    if stopping.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
        return stopping.wait_count >= stopping.patience  # unless it was given more since
    return stopping.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
