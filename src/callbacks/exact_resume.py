"""State that Lightning leaves out of a checkpoint and that exact resuming needs."""

from __future__ import annotations

import logging
from typing import Any

import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer

from src.callbacks.companions import (
    go_on,
    keep_patience,
    refuse_inexact,
    refuse_other_checkpoints,
    refuse_unknown_metrics,
    warn_of_unknown_metrics,
)
from src.callbacks.csv_logger import RunLogger
from src.callbacks.rng import rng_state, set_rng_state
from src.callbacks.wandb_logger import WandbRun
from src.contracts import LearnsFromRollouts
from src.internals import (
    convert_saved_batches,
    is_accumulating,
    logged_step,
    mend_loops,
    mend_saved_loops,
    pending_metrics,
    position_of,
    restore_loader,
)

log = logging.getLogger(__name__)

# Settings that may change without affecting the result of training.
UNIMPORTANT = (
    "ckpt_path",
    "config",
    "weights_only",
    "fresh_run",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.num_sanity_val_steps",
    "trainer.plugins",
    "trainer.profiler",
    "data.init_args.num_workers",
    "data.init_args.cache_dir",
)


class ExactResume(Callback):
    """Keeps the random number generators of every process, the metrics of the step and the settings in checkpoints.

    A checkpoint is written inside a step, after the weights changed and before Lightning logs that step's metrics. So
    the checkpoint holds these metrics, and a resumed run logs them first. Rows that the killed run had logged after
    its last checkpoint are deleted from `metrics.csv`; the resumed run logs the same values again.

    Args:
        config: The run's settings, compared with those of the checkpoint's run. The command fills it in.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config = config or {}
        self._trainer: Trainer | None = None
        self._restored: dict[str, Any] | None = None
        self._rng_before_validation: dict[str, Any] | None = None
        self._made_a_step = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the trainer, which Lightning does not pass to `state_dict`, and refuse inexact callbacks."""
        self._trainer = trainer
        if stage == "fit":
            refuse_inexact(trainer)
            refuse_other_checkpoints(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The state, with the random states gathered from all processes: Lightning calls this on each of them."""
        trainer = self._trainer
        assert trainer is not None
        own = self._rng_before_validation or rng_state()
        states = [own]
        if trainer.world_size > 1:
            states = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(states, own)
        return {
            "rng": states,
            "config": self.config,
            "position": position_of(trainer, in_validation=self._rng_before_validation is not None),
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "pending": pending_metrics(trainer),
            "logged_step": logged_step(trainer),
            "loggers": [logger.resume_state() for logger in _resumable(trainer)],
        }

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse monitored validation metrics that do not exist, before an epoch is trained in vain."""
        refuse_unknown_metrics(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the first optimiser step, warn of monitored training metrics that it has not logged."""
        if not self._made_a_step and not is_accumulating(trainer):
            self._made_a_step = True
            if trainer.is_global_zero:
                warn_of_unknown_metrics(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the random state: a validation that is interrupted starts over after resuming."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._rng_before_validation = rng_state()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the random state kept for an interrupted validation."""
        self._rng_before_validation = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts."""
        self._restored = state_dict

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Name the settings that changed, and convert Lightning's counters where the accumulation did."""
        if trainer.state.fn != "fit":
            return
        state = checkpoint["callbacks"].get(self.state_key, {})
        saved = state.get("config", {})
        for difference in compare_settings(saved, self.config) if saved and self.config else []:
            log.warning("Changed since the checkpoint: %s.", difference)
        keep_patience(trainer, checkpoint)
        mend_saved_loops(checkpoint["loops"]["fit_loop"], state.get("position", "within epoch"))
        now = trainer.accumulate_grad_batches
        if isinstance(pl_module, LearnsFromRollouts):
            now = pl_module.minibatches_per_rollout(trainer.datamodule.batch_size)  # type: ignore[attr-defined]
        convert_saved_batches(checkpoint["loops"]["fit_loop"], now)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore loader, loops, loggers and random state from the checkpoint."""
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        restore_loader(trainer)
        go_on(trainer)
        mend_loops(trainer, state["position"], state["metrics"])
        for logger, logger_state in zip(_resumable(trainer), state["loggers"], strict=False):
            if isinstance(logger, RunLogger):
                logger.truncate(logger_state["rows"])
        if state["pending"]:
            for any_logger in trainer.loggers:
                any_logger.log_metrics(dict(state["pending"]), step=state["logged_step"])
        states = state["rng"]
        if trainer.global_rank < len(states):
            set_rng_state(states[trainer.global_rank])
        else:
            torch.manual_seed(int(torch.initial_seed()) + trainer.global_rank)
        if len(states) != trainer.world_size:
            log.warning(
                "The checkpoint's run had %d processes and this one has %d: the same examples in the same order, but "
                "dropout and sampling draw other numbers.",
                len(states),
                trainer.world_size,
            )


def _resumable(trainer: Trainer) -> list[RunLogger | WandbRun]:
    return [logger for logger in trainer.loggers if isinstance(logger, (RunLogger, WandbRun))]


def compare_settings(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Settings that differ and may affect training, each as `name was old, now new`."""
    before, now = _flat(saved), _flat(current)
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    changed = [
        name for name in changed if not any(name == plain or name.startswith(f"{plain}.") for plain in UNIMPORTANT)
    ]
    return [f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in changed]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
