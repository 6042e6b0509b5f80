"""Stops training whose loss is no longer finite."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from src.errors import ParleyError

PATIENCE = 5  # optimiser steps in a row; the count is read this seldom, since on a GPU reading synchronises


class Breakdown:
    """Counts optimiser steps in a row whose loss is not finite."""

    def __init__(self) -> None:
        self._in_a_row: Tensor | None = None
        self._steps = 0

    def note(self, loss: Tensor, trainer: Trainer) -> None:
        """Count an optimiser step's loss; every process must call this.

        Args:
            loss: This process's loss, a scalar.
            trainer: The trainer, which reduces the count over processes.

        Raises:
            ParleyError: Too many losses in a row were not finite.
        """
        before = torch.zeros((), device=loss.device) if self._in_a_row is None else self._in_a_row
        self._in_a_row = torch.where(loss.isfinite(), 0.0, before + 1)
        self._steps += 1
        if self._steps % PATIENCE:
            return
        count = self._in_a_row
        if trainer.world_size > 1:
            count = trainer.strategy.reduce(count.clone(), reduce_op="max")
        if int(count) >= PATIENCE:
            raise ParleyError(
                f"the loss was not finite for {int(count)} steps in a row up to step {trainer.global_step + 1} "
                f"({trainer.precision}); use trainer.precision bf16-mixed in place of float16, or go on from an "
                "earlier checkpoint with a lower learning rate."
            )
