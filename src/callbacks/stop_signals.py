"""SIGTERM and SIGINT: write a checkpoint, then leave."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from src.callbacks.checkpoints import Checkpoints
from src.errors import StoppedBySignalError

log = logging.getLogger(__name__)

Handler = Callable[[int, FrameType | None], Any] | int | None


class StopOnSignal(Callback):
    """Ends training at the next optimiser step after a signal, with a checkpoint of that very step.

    SIGINT (Ctrl-C) and SIGTERM stop the run; a second one ends it at once. SIGUSR1, which SLURM sends ahead of the time
    limit (`#SBATCH --signal=USR1@120`), does the same; under SLURM any of them puts the job back into the queue.
    A signal to one process stops all of them at the same step.
    """

    def __init__(self) -> None:
        self._received = 0
        self._previous: dict[int, Handler] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals, after Lightning has taken them."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._give_back()
        # `raise_signal` or a second signal now does what it did before.

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if number == signal.SIGUSR1 else handler)
        self._previous = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here, if any process was told to and no gradients are waiting."""
        received = self._received
        if trainer.world_size > 1:
            flag = torch.tensor(received, device=pl_module.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            received = int(flag)
        if not received or trainer.fit_loop._should_accumulate():
            return
        checkpoints = next(callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints))
        path = checkpoints.last_path if checkpoints.is_saved(trainer) else checkpoints.save(trainer)
        line = (
            f"stopped by {signal.Signals(received).name} at step {trainer.global_step}; go on with --ckpt_path {path}"
        )
        if trainer.is_global_zero and (job := os.environ.get("SLURM_JOB_ID")):
            line += f" ({_requeue(job)})"
        raise StoppedBySignalError(line, received)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._give_back()


def _requeue(job: str) -> str:
    """Put a SLURM job back into the queue; say what came of it."""
    if shutil.which("scontrol") is None:
        return f"job {job} was not requeued: there is no scontrol here"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    return f"job {job} requeued" if done.returncode == 0 else f"job {job} was not requeued: {done.stderr.strip()}"
