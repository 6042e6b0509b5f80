"""A callback that makes every wait for the GPU an error within training steps."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class NoWaits(Callback):
    """From a step's start until its optimiser has stepped, waiting for the GPU raises; the first steps set things up.

    Attributes:
        watched: Steps in which it would have raised.
    """

    watched = 0
    SET_UP = 2

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step >= self.SET_UP and torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("error")

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        NoWaits.watched += int(trainer.global_step >= self.SET_UP)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
