"""How much of the model is trained, exactly, and what its weights take."""

from __future__ import annotations

import logging

from lightning.pytorch import Callback, LightningModule, Trainer

from src.models.lora import ParameterCount
from src.models.low_precision import bytes_held

log = logging.getLogger(__name__)


class ParameterSummary(Callback):
    """Says at the start how many parameters there are, how many are trained, and what memory a process gives them.

    The memory is that of the Module's weights, in shards or not, quantised ones with their scales: counted, not
    measured. Gradients and an optimiser's state come on top, of what is trained.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log counts and bytes, to the terminal and to the loggers."""
        count: ParameterCount = pl_module.parameter_count  # type: ignore[assignment]
        held = bytes_held(pl_module.parameters())
        trained = bytes_held(parameter for parameter in pl_module.parameters() if parameter.requires_grad)
        if trainer.is_global_zero:
            log.info("%s", count)
            log.info("weights take %s bytes on a process, %s of them trained", f"{held:,}", f"{trained:,}")
        figures = {"parameters": count.total, "trainable_parameters": count.trainable, "weight_bytes": held}
        for logger in trainer.loggers:
            logger.log_hyperparams(figures)
