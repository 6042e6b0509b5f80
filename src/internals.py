"""All private parts of Lightning 2.6 that Parley uses, and why; `tests/test_internals.py` names each.

Most of it corrects how Lightning resumes from a checkpoint written next to a validation or the end of an epoch.
It takes a checkpoint that was written before a validation for one that was written after it, and skips the validation;
at an epoch's last batch it skips the end of the epoch as well. A schedule that watches a metric (`ReduceLROnPlateau`)
misses its step wherever a resumed run first comes to the end of an epoch. An epoch that `max_steps` cuts short counts
as done. So a checkpoint records its position in the loops, and a resumed run corrects Lightning's counters.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from src.contracts import batches_per_global_batch, converted_batches
from src.signals import signals_held

Position = Literal[
    "within epoch",
    "before validation",
    "in validation",
    "after validation",
    "before epoch end",
    "epoch end",
    "epoch cut short",
]
COUNTERS = ("ready", "started", "processed", "completed")


def position_of(trainer: Trainer, *, in_validation: bool) -> Position:
    """The position in the training loops, for a checkpoint that is written now.

    Args:
        trainer: The trainer, fitting.
        in_validation: Whether a validation has begun and not ended.
    """
    fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if in_validation:
        return "in validation"
    if trainer.validating:
        return "after validation"
    epochs = fit_loop.epoch_progress.current
    if epochs.processed > epochs.completed:  # type: ignore[attr-defined]
        return "epoch end" if is_epoch_full(trainer) else "epoch cut short"
    progress = epoch_loop.batch_progress.current
    if progress.processed == progress.completed or fit_loop._data_fetcher is None:  # type: ignore[attr-defined]
        return "within epoch"
    if epoch_loop._should_check_val_fx(fit_loop._data_fetcher):
        return "before validation"
    return "before epoch end" if is_epoch_full(trainer) else "within epoch"


def mend_saved_loops(fit_loop: dict[str, Any], position: Position) -> None:
    """Correct the loop state of a checkpoint so that Lightning resumes at the right place.

    Args:
        fit_loop: The state of Lightning's `fit_loop`, changed in place.
        position: Where the checkpoint was written.
    """
    if position in ("before validation", "before epoch end"):  # the batch is done, and its epoch is not
        for scope in ("total", "current"):
            progress = fit_loop["epoch_loop.batch_progress"][scope]
            progress["completed"] = progress["processed"]
    if position == "before epoch end":
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    if position == "epoch cut short":  # by max_steps: Lightning counts the epoch, and leaves out the rest of it
        for scope in ("total", "current"):
            fit_loop["epoch_progress"][scope]["processed"] -= 1
    if position == "in validation":
        progress = fit_loop["epoch_loop.val_loop.batch_progress"]
        for counter in COUNTERS:
            progress["total"][counter] -= progress["current"][counter]


def mend_loops(trainer: Trainer, position: Position, metrics: dict[str, float]) -> None:
    """Correct Lightning's loops when training starts, after their state was loaded.

    Args:
        trainer: The trainer.
        position: Where the checkpoint was written.
        metrics: The logged metrics at that time, which schedules may monitor.
    """
    fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    trainer._logger_connector._callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    fit_loop._restarting = False  # or schedules that watch a metric are left out at the end of this epoch
    if position in ("before validation", "in validation"):
        epoch_loop.val_loop.batch_progress.reset_on_run()
        epoch_loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
    if position == "epoch end":
        epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)


def logged_step(trainer: Trainer) -> int:
    """The step under which Lightning logs metrics, for rows that are logged beside them.

    Lightning counts batches that ended in a step; `trainer.global_step` counts the optimiser's steps, of which a batch
    may take several.

    Args:
        trainer: In any of its loops.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def is_attached(module: LightningModule) -> bool:
    """Whether a Module has a Trainer, whose absence its public property reports as an error."""
    return module._trainer is not None


def shows_progress(trainer: Trainer) -> bool:
    """Whether there is a bar for metrics: Lightning reads those that are for it after every batch, bar or not."""
    return trainer.progress_bar_callback is not None


def is_accumulating(trainer: Trainer) -> bool:
    """Whether the batch that has just been done ended without an optimiser step (gradient accumulation)."""
    return bool(trainer.fit_loop._should_accumulate())


def logs_this_step(trainer: Trainer) -> bool:
    """Whether the step under way is one that the trainer logs."""
    return bool(trainer._logger_connector.should_update_logs)


def is_epoch_full(trainer: Trainer) -> bool:
    """Whether all batches of the epoch are done."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def place(trainer: Trainer) -> tuple[int, int]:
    """Batches and whole epochs done; they tell states apart that have the same number of optimiser steps."""
    epochs = trainer.fit_loop.epoch_progress.total
    return trainer.fit_loop.epoch_loop.total_batch_idx, epochs.processed  # type: ignore[attr-defined]


def epochs_so_far(trainer: Trainer) -> int:
    """Epochs whose last batch is done, as schedules count them within a step."""
    return trainer.fit_loop.epoch_progress.current.started - int(not trainer.is_last_batch)  # type: ignore[attr-defined]


def forget_sigterm(trainer: Trainer) -> None:
    """Keep Lightning from ending the run for a SIGTERM that our own handler answers."""
    trainer._signal_connector.received_sigterm = False


def hold_signals_at_launch(trainer: Trainer) -> None:
    """Block signals in the processes that DDP starts until they have installed their handlers."""
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    start = launcher._call_children_scripts

    def start_held() -> None:
        with signals_held():
            start()

    launcher._call_children_scripts = start_held  # type: ignore[method-assign]


def uses_distributed_sampler(trainer: Trainer) -> bool:
    """Whether Lightning would put a sampler of its own into loaders."""
    return bool(trainer._accelerator_connector.use_distributed_sampler)


def restore_loader(trainer: Trainer) -> None:
    """Load the checkpoint's state into the training data loader.

    Lightning does this when it makes the loader, but a schedule that asks for the number of training steps makes
    it before the checkpoint is read.
    """
    loop = trainer.fit_loop
    if loop._combined_loader_states_to_load and loop._combined_loader is not None:
        loop._combined_loader._load_state_dicts(loop._combined_loader_states_to_load)
        loop._combined_loader_states_to_load = []


def pending_metrics(trainer: Trainer) -> dict[str, float]:
    """What Lightning is about to log for the step that has just been taken, if anything."""
    connector = trainer._logger_connector
    if not trainer.training or connector._first_loop_iter is None or not logs_this_step(trainer):
        return {}
    if is_accumulating(trainer):
        return {}
    metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
    return {**metrics, "epoch": trainer.current_epoch} if metrics else {}


def convert_saved_batches(fit_loop: dict[str, Any], now: int) -> None:
    """Convert a checkpoint's batch counters to this run's number of batches per global batch.

    Args:
        fit_loop: The state of Lightning's `fit_loop`, changed in place.
        now: Batches that this run takes of a global batch, on each process.
    """
    loaders = fit_loop.get("state_dict", {}).get("combined_loader") or []
    before = batches_per_global_batch(loaders[0]) if loaders and "accumulate" in loaders[0] else now
    if before == now:
        return
    for scope in ("current", "total"):
        progress = fit_loop["epoch_loop.batch_progress"][scope]
        processed = progress["processed"]  # whole steps; one more than completed where a batch was ending
        for counter in COUNTERS:
            progress[counter] += converted_batches(processed, before, now) - processed


def loader_of(trainer: Trainer, part: Literal["train", "validation", "test"]) -> Any:
    """A new data loader for a split, before Lightning's loop has made the one that it iterates over.

    Args:
        trainer: Attached to its DataModule.
        part: Which split.

    Returns:
        The loader; None where there is no such data.
    """
    loops: dict[str, Any] = {
        "train": trainer.fit_loop,
        "validation": trainer.validate_loop if trainer.state.fn == "validate" else trainer.fit_loop.epoch_loop.val_loop,
        "test": trainer.test_loop,
    }
    source = loops[part]._data_source
    return source.dataloader() if source.is_defined() else None
