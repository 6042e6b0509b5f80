"""How much of the model is trained, exactly."""

from __future__ import annotations

import logging

from lightning.pytorch import Callback, LightningModule, Trainer

from src.models.lora import ParameterCount

log = logging.getLogger(__name__)


class ParameterSummary(Callback):
    """Says at the start how many parameters there are and how many are trained, to the last one."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the counts, to the terminal and to the loggers."""
        count: ParameterCount = pl_module.parameter_count  # type: ignore[assignment]
        if trainer.is_global_zero:
            log.info("%s", count)
        for logger in trainer.loggers:
            logger.log_hyperparams({"parameters": count.total, "trainable_parameters": count.trainable})
