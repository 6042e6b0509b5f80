"""How fast training goes, in tokens that are not padding."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from src.contracts import IGNORE_INDEX, Batch


def real_tokens(batch: Batch, *, is_encoder_decoder: bool) -> int:
    """Tokens of a batch that are not padding: prompt and target."""
    tokens = int(batch["attention_mask"].sum())
    return tokens + int((batch["labels"] != IGNORE_INDEX).sum()) if is_encoder_decoder else tokens


class Throughput(Callback):
    """Logs `train/tokens_per_second`, padding left out, over all processes since the last time it logged."""

    def __init__(self) -> None:
        self._tokens = 0
        self._since = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out validation and the time between epochs."""
        self._tokens, self._since = 0, time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out validation within an epoch."""
        self._tokens, self._since = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log at the trainer's interval."""
        self._tokens += real_tokens(batch, is_encoder_decoder=bool(pl_module.is_encoder_decoder))
        if (trainer.global_step + 1) % trainer.log_every_n_steps or not self._since:  # type: ignore[attr-defined]
            return
        tokens = torch.tensor(float(self._tokens), device=pl_module.device)
        if trainer.world_size > 1:
            tokens = trainer.strategy.reduce(tokens, reduce_op="sum")
        pl_module.log("train/tokens_per_second", tokens / (time.perf_counter() - self._since))
        self._tokens, self._since = 0, time.perf_counter()
