"""When checkpoints are written, and which of them are kept."""

from __future__ import annotations

import logging
import math
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from src.callbacks.run_directory import DirectoryLock, run_directory
from src.callbacks.shard_files import mend, remove
from src.callbacks.storage import AtomicCheckpointIO
from src.callbacks.wandb_logger import WandbRun
from src.contracts import Writing
from src.errors import ParleyError
from src.internals import is_accumulating, is_epoch_full, place
from src.parallel.gathering import local
from src.parallel.hosts import Hosts
from src.ranges import COUNT, POSITIVE, refuse_outside

log = logging.getLogger(__name__)
OWN_NAME = re.compile(r"step=\d+\.ckpt")


class Checkpoints(Checkpoint):
    """Writes a checkpoint every so many optimiser steps or minutes, after each epoch and at the end of training.

    Each holds the complete state of the run, so that it resumes exactly. `step=0000120.ckpt` is the state after
    120 optimiser steps. The newest `keep_last` stay, and beside them `best.ckpt` where a metric is monitored. A run
    deletes only checkpoints that it wrote itself, before or after it was resumed; each checkpoint lists them. So a run
    that goes back to an earlier checkpoint, or shares a directory, keeps other files until it overwrites them.

    Args:
        every_n_steps: Optimiser steps between checkpoints; no interval in steps when left out.
        every_n_minutes: Minutes between checkpoints; no interval in time when left out.
        keep_last: How many of the newest to keep.
        monitor: A validation metric whose best state is kept as `best.ckpt`, such as `val/rouge1`.
        mode: Whether more (`max`) or less (`min`) of it is better.
        dirpath: Where they go; `checkpoints` in the run's directory when left out.
        asynchronous: Write in the background, from a copy in memory, one checkpoint at a time. The end of training, and
            a run that is stopped by a signal, wait for it; older checkpoints stay until it is written.

    Raises:
        ParleyError: A number is not positive, or another process trains in the same directory.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
        keep_last: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        dirpath: str | None = None,
        asynchronous: bool = False,
    ) -> None:
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.keep_last = keep_last
        counts = dict.fromkeys(("every_n_steps", "keep_last"), COUNT)
        refuse_outside(self, counts | {"every_n_minutes": POSITIVE}, "Checkpoints.")
        self.monitor = monitor
        self.mode = mode
        self.directory = Path(dirpath) if dirpath is not None else None
        self.asynchronous = asynchronous
        self.best_score: float | None = None
        self.last_path: Path | None = None
        self._last_step = -1
        self._saved: tuple[int, int] | None = None
        self._written: list[str] = []  # by this run and those that it was resumed from, oldest first
        self._lock: DirectoryLock | None = None
        self._last_time = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the checkpoint directory; on rank 0 lock it and clean up after runs that were killed."""
        if stage != "fit":
            return
        if self.directory is None:
            self.directory = run_directory(trainer) / "checkpoints"
        if trainer.is_global_zero:
            self._lock = DirectoryLock(self.directory)
            mend(self.directory)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the lock on the checkpoint directory."""
        self._unlock()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Wait for the checkpoint in flight and release the lock on the checkpoint directory."""
        with suppress(ParleyError):
            self.wait(trainer)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the intervals at the current step and time; a resumed run's first state counts as saved."""
        assert self.directory is not None, "setup comes first"
        if trainer.ckpt_path is None or Path(trainer.ckpt_path).resolve().parent != self.directory.resolve():
            self._written = []  # they are in another directory
        if not self.asynchronous:  # in the background the next save does it, as in a run that was not stopped
            self._drop_old(trainer)  # those that a killed run had not deleted yet
        self._last_step = trainer.global_step
        self._saved = place(trainer) if trainer.global_step else None
        self._last_time = time.monotonic()
        self._hosts: Hosts | None = None  # an earlier run's processes may be gone

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when `every_n_steps` or `every_n_minutes` is reached, and at `max_steps`."""
        if not self.is_saved(trainer) and self._is_due(trainer):
            self.save(trainer)

    def is_saved(self, trainer: Trainer) -> bool:
        """Whether the current state has been saved already."""
        return place(trainer) == self._saved

    def _is_due(self, trainer: Trainer) -> bool:
        if is_accumulating(trainer):  # accumulated gradients are not saved
            return False
        if (
            self.every_n_steps is not None
            and trainer.global_step // self.every_n_steps > self._last_step // self.every_n_steps
        ):
            return True
        if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
            return True  # now, for afterwards Lightning counts the epoch as done, and a longer run would skip the rest
        if self.every_n_minutes is None:
            return False
        is_up = time.monotonic() - self._last_time >= 60 * self.every_n_minutes
        self._hosts = self._hosts or Hosts(trainer.world_size)
        return bool(self._hosts.largest(is_up))  # clocks differ between processes

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save `best.ckpt` if the monitored metric improved; the sanity check already fails if it is not reported."""
        if self.monitor is None or trainer.state.fn != "fit":
            return
        score = trainer.callback_metrics.get(self.monitor)
        if score is None and trainer.sanity_checking and not self.monitor.startswith("val"):
            return  # a training metric, not logged yet
        if score is None:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ParleyError(
                f"Checkpoints watches {self.monitor!r}, which validation does not report; it reports {known}."
            )
        if trainer.sanity_checking:
            return
        value = float(score)
        if not math.isfinite(value):
            log.warning("%s is %s at step %d, which is never the best.", self.monitor, value, trainer.global_step)
        elif self.best_score is None or (value < self.best_score if self.mode == "min" else value > self.best_score):
            self.best_score = value
            self._write(trainer, "best.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after each epoch and its validation."""
        if not self.is_saved(trainer) and not self._ended_within_epoch(trainer):
            self.save(trainer)

    def _ended_within_epoch(self, trainer: Trainer) -> bool:
        """Whether training stopped within the epoch, at a step that has been saved already."""
        return trainer.global_step == self._last_step and not is_epoch_full(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state, unless that is done, and upload it to W&B if the logger is set to."""
        if not self.is_saved(trainer) and not self._ended_within_epoch(trainer):
            self.save(trainer)
        if self.asynchronous:
            self.wait(trainer)
            self._drop_old(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun) and self.last_path is not None:
                logger.log_checkpoint(self.last_path)

    def save(self, trainer: Trainer) -> Path:
        """Save the current state and delete the oldest checkpoints beyond `keep_last`; every process must call this.

        Returns:
            The checkpoint's path.

        Raises:
            ParleyError: The weights are not finite, or the disk is full.
        """
        name = f"step={trainer.global_step:07d}.ckpt"
        if self.asynchronous:  # older checkpoints may be deleted only once the one in flight is written
            self.wait(trainer)
            self._drop_old(trainer)
        self._written = [*(other for other in self._written if other != name), name]
        self.last_path = self._write(trainer, name)
        self._last_step = trainer.global_step
        self._saved = place(trainer)
        self._last_time = time.monotonic()
        if not self.asynchronous:
            self._drop_old(trainer)
        return self.last_path

    def wait(self, trainer: Trainer) -> None:
        """Block until the checkpoint in flight is on disk.

        Raises:
            ParleyError: It could not be written.
        """
        writer = trainer.strategy.checkpoint_io if self.asynchronous else None
        if isinstance(writer, AtomicCheckpointIO):
            writer.wait()

    def _drop_old(self, trainer: Trainer) -> None:
        """Delete this run's checkpoints beyond the newest `keep_last`, unless another run has overwritten them."""
        assert self.directory is not None, "setup comes first"
        older, self._written = self._written[: -self.keep_last], self._written[-self.keep_last :]
        for name in older if trainer.is_global_zero else []:
            old, kept = self.directory / name, self.directory / self._written[0]
            with suppress(FileNotFoundError):
                if old.stat().st_mtime_ns <= kept.stat().st_mtime_ns:
                    remove(old)

    def _write(self, trainer: Trainer, name: str) -> Path:
        assert self.directory is not None, "setup comes first"
        path = self.directory / name
        _refuse_broken(trainer)
        options: dict[str, Any] = {"storage_options": Writing(asynchronous=True)} if self.asynchronous else {}
        trainer.save_checkpoint(path, **options)
        return path

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, and the names of the checkpoints that this run has written and kept."""
        return {"best_score": self.best_score, "written": list(self._written)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and the names of the checkpoints written so far."""
        self.best_score = state_dict["best_score"]
        # These files will be deleted later: a checkpoint from an untrusted source must not name files elsewhere.
        self._written = [name for name in state_dict.get("written", []) if OWN_NAME.fullmatch(str(name))]


def _refuse_broken(trainer: Trainer) -> None:
    """Refuse to save weights that are not finite: they never recover, and would displace good checkpoints.

    Raises:
        ParleyError: A trainable parameter holds NaN or infinity, on any process.
    """
    trained = (parameter for parameter in trainer.lightning_module.parameters() if parameter.requires_grad)
    is_finite = all(bool(local(parameter).isfinite().all()) for parameter in trained)
    if not trainer.strategy.reduce_boolean_decision(is_finite, all=True):
        raise ParleyError(
            f"the weights are not finite at step {trainer.global_step} ({trainer.precision}), so no checkpoint of them "
            "was written; use trainer.precision bf16-mixed in place of float16, or go on from an earlier checkpoint "
            "with a lower learning rate."
        )
