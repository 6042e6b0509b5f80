"""A run that ends in the middle, with a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Cut(Exception):
    """The power goes."""


class CutAt(Callback):
    """Writes a checkpoint after a training step, and ends the run there.

    Args:
        step: Which.
        path: The checkpoint.
    """

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise Cut
