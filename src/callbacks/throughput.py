"""Training throughput in tokens per second, padding not counted, and a GPU's memory."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from src.contracts import IGNORE_INDEX, Batch, CountsTokens
from src.internals import is_accumulating, logs_this_step


def real_tokens(batch: Batch, *, is_encoder_decoder: bool) -> Tensor:
    """Tokens of a batch that are not padding, prompt and target: a scalar on its device, without synchronising it."""
    tokens = batch["attention_mask"].sum()
    return tokens + (batch["labels"] != IGNORE_INDEX).sum() if is_encoder_decoder else tokens


class Throughput(Callback):
    """Logs `train/tokens_per_second`, padding left out, over all processes since the last time it logged.

    On CUDA it also logs `train/peak_memory_mib`, the most that torch has held on this process's GPU so far.
    """

    def __init__(self) -> None:
        self._tokens: Tensor | int = 0
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the count; `on_train_epoch_start` is not called when a run resumes within an epoch."""
        self._tokens, self._since = 0, time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the count, to leave out validation and the time between epochs."""
        self._tokens, self._since = 0, time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the count, to leave out a validation within the epoch."""
        self._tokens, self._since = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's tokens, and log at the trainer's interval."""
        if isinstance(pl_module, CountsTokens):
            self._tokens += pl_module.tokens(batch)
        else:
            self._tokens += real_tokens(batch, is_encoder_decoder=bool(pl_module.is_encoder_decoder))
        if is_accumulating(trainer) or not logs_this_step(trainer):
            return  # the condition of Lightning's own monitors
        tokens = torch.as_tensor(self._tokens, dtype=torch.float32, device=pl_module.device)
        if trainer.world_size > 1:
            tokens = trainer.strategy.reduce(tokens, reduce_op="sum")
        # `item` synchronises, so that the time includes the work that is counted.
        pl_module.log("train/tokens_per_second", tokens.item() / (time.perf_counter() - self._since))
        self._tokens, self._since = 0, time.perf_counter()
        if pl_module.device.type == "cuda":
            pl_module.log("train/peak_memory_mib", torch.cuda.max_memory_allocated(pl_module.device) / 2**20)
