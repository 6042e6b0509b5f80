"""SIGTERM, SIGINT and SIGUSR1 while training: write a checkpoint, then exit."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from src.callbacks.checkpoints import Checkpoints
from src.errors import StoppedBySignalError
from src.internals import forget_sigterm, is_accumulating
from src.parallel.hosts import Hosts
from src.signals import is_started_by_ddp

log = logging.getLogger(__name__)

REPEATED_BY_A_PERSON = 1.0  # seconds; `timeout` and terminals may deliver one signal twice
Handler = Callable[[int, FrameType | None], Any] | int | None


class StopOnSignal(Callback):
    """Ends training soon after a signal, with a checkpoint of the state at which it stopped.

    SIGINT (Ctrl-C) and SIGTERM end the run after the optimiser's step, or the validation batch, that is under way; a
    second one ends it at once. So does SIGUSR1, which SLURM sends ahead of the time limit
    (`#SBATCH --signal=USR1@120`), and puts the job back into the queue as well. (SIGTERM does not: it is what
    `scancel` sends, and what SLURM sends when it requeues a job by itself.) A signal to one process stops all of
    them at the same step.
    """

    def __init__(self) -> None:
        self._received = 0
        self._received_at = 0.0
        self._previous: dict[int, Handler] = {}
        self._trainer: Trainer | None = None
        self._outside_training: Handler = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the handler of SIGTERM, before Lightning replaces it."""
        self._outside_training = signal.getsignal(signal.SIGTERM)

    def _as_outside_training(self) -> None:
        """Restore the handler of SIGTERM: Lightning's waits in a barrier that other processes may not reach."""
        if callable(self._outside_training):
            signal.signal(signal.SIGTERM, self._outside_training)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the handler of SIGTERM: before training there is nothing to save."""
        self._as_outside_training()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In `parley validate`, restore the handler of SIGTERM: there is nothing to save."""
        if trainer.state.fn != "fit":
            self._as_outside_training()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In `parley test`, restore the handler of SIGTERM: there is nothing to save."""
        self._as_outside_training()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In `parley predict`, restore the handler of SIGTERM: there is nothing to save."""
        self._as_outside_training()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install our signal handlers, after Lightning has installed its own."""
        self._trainer = trainer
        self._hosts = Hosts(trainer.world_size)
        if trainer.received_sigterm:  # while Lightning's handler was installed
            self._received = signal.SIGTERM
            forget_sigterm(trainer)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._received:
            self._received, self._received_at = number, now
        elif number != signal.SIGUSR1 and now - self._received_at > REPEATED_BY_A_PERSON:
            launcher = self._trainer.strategy.launcher if self._trainer is not None else None
            if launcher is not None:
                launcher.kill(signal.SIGKILL)
            os._exit(128 + number)

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after this batch if any process received a signal and no accumulated gradients are pending."""
        received = self._hosts.largest(self._received)
        if received and not is_accumulating(trainer):
            self._stop(trainer, received)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop after this batch if any process received a signal; a resumed run starts the validation over."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            received = self._hosts.largest(self._received)
            if received:
                self._stop(trainer, received)

    def _stop(self, trainer: Trainer, received: int) -> None:
        checkpoints = next(callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints))
        path = checkpoints.last_path if checkpoints.is_saved(trainer) else None
        path = path or checkpoints.save(trainer)
        checkpoints.wait(trainer)
        if not trainer.is_global_zero:  # one line is enough; torchrun must hear of each process that it is not done
            raise StoppedBySignalError("", 0 if is_started_by_ddp() else received)
        line = (
            f"stopped by {signal.Signals(received).name} at step {trainer.global_step}; go on with --ckpt_path {path}"
        )
        if received == signal.SIGUSR1 and (job := os.environ.get("SLURM_JOB_ID")):
            line += f" ({_requeue(job)})"
        raise StoppedBySignalError(line, received)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the previous signal handlers."""
        self._give_back()


def _requeue(job: str) -> str:
    """Requeue a SLURM job; returns the outcome as a clause."""
    if shutil.which("scontrol") is None:
        return f"job {job} was not requeued: there is no scontrol here"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    return f"job {job} requeued" if done.returncode == 0 else f"job {job} was not requeued: {done.stderr.strip()}"
