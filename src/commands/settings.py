"""What numbers a run's settings may have, checked when the configuration is read.

Classes check what they alone know; here is what Lightning, torch and numpy would find out late, or never.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from src.errors import ParleyError


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have.

    Attributes:
        least: The least one.
        below: What it must be below; any finite number when left out.
        above: Whether `least` itself is too little.
    """

    least: float
    below: float | None = None
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in it; NaN and infinity never are."""
        if not math.isfinite(value) or value < self.least or (self.above and value == self.least):
            return False
        return self.below is None or value < self.below

    def __str__(self) -> str:
        start = f"above {self.least:g}" if self.above else f"{self.least:g} or more"
        if self.below is None:
            return start
        power = math.log2(self.below) if self.below >= 2**32 else 0
        return f"{start} and below {f'2**{power:g}' if power else f'{self.below:g}'}"


POSITIVE, COUNT, SHARE = Range(0, above=True), Range(1), Range(0, 1)
NOT_NEGATIVE, OR_NO_LIMIT = Range(0), Range(-1)
OPTIMIZER, SCHEDULE = (f"model.init_args.{part}.init_args" for part in ("optimizer", "lr_scheduler"))
RANGES = {
    "seed_everything": Range(0, 2**32),  # numpy's
    "data.init_args.seed": Range(0, 2**63),  # torch's
    "model.init_args.generation.seed": Range(0, 2**63),
    "model.init_args.dropout": SHARE,
    "model.init_args.label_smoothing": SHARE,
    "model.init_args.max_skipped_updates": COUNT,
    "data.init_args.num_workers": NOT_NEGATIVE,
    "data.init_args.min_chars": NOT_NEGATIVE,
    "data.init_args.max_chars": COUNT,
    "data.init_args.max_tokens_per_batch": COUNT,
    "data.init_args.pack_length": COUNT,
    f"{OPTIMIZER}.lr": NOT_NEGATIVE,
    f"{OPTIMIZER}.weight_decay": NOT_NEGATIVE,
    f"{OPTIMIZER}.eps": NOT_NEGATIVE,
    f"{OPTIMIZER}.momentum": NOT_NEGATIVE,
    f"{SCHEDULE}.warmup": NOT_NEGATIVE,
    f"{SCHEDULE}.num_training_steps": COUNT,
    f"{SCHEDULE}.total_steps": COUNT,
    f"{SCHEDULE}.max_lr": POSITIVE,
    "trainer.num_nodes": COUNT,
    "trainer.max_epochs": OR_NO_LIMIT,
    "trainer.max_steps": OR_NO_LIMIT,
    "trainer.accumulate_grad_batches": COUNT,
    "trainer.gradient_clip_val": NOT_NEGATIVE,
    "trainer.check_val_every_n_epoch": COUNT,
    "trainer.val_check_interval": POSITIVE,
    "trainer.log_every_n_steps": NOT_NEGATIVE,
    "trainer.num_sanity_val_steps": OR_NO_LIMIT,
    **{f"trainer.limit_{part}_batches": NOT_NEGATIVE for part in ("train", "val", "test", "predict")},
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse numbers out of range and switches that Parley cannot do without.

    Args:
        settings: The configuration of a subcommand, nested.

    Raises:
        ParleyError: Names the setting, its value and what it may be.
    """
    for name, value in _leaves(settings):
        allowed = RANGES.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if allowed is not None and is_number and not allowed.holds(value):
            raise ParleyError(f"{name} is {value}; it must be {allowed}.")
    trainer = settings.get("trainer") or {}
    if trainer.get("barebones"):
        raise ParleyError(
            "trainer.barebones leaves out the logs and checkpoints that a run here is made of; leave it out "
            "(--trainer.fast_dev_run 5 tries a run without them)."
        )
    if trainer.get("enable_checkpointing") is False:
        raise ParleyError(
            "trainer.enable_checkpointing is false, and a run here can always be resumed; leave it out "
            "(--trainer.callbacks+=Checkpoints --trainer.callbacks.keep_last 1 keeps one file)."
        )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# Modules whose complaints are about what they were told to do, and which setting tells them.
_BLAMED = {
    "torch.optim.lr_scheduler": "model.init_args.lr_scheduler",
    "torch.optim": "model.init_args.optimizer",
    "lightning": "",
}


def complaint_about_settings(error: BaseException) -> str | None:
    """What a library says is wrong with the settings, as one line.

    Args:
        error: What came out of a run. It is about settings where Lightning or an optimiser raised it itself.

    Returns:
        The line; None where the error is something else.
    """
    if not isinstance(error, (ValueError, TypeError, RuntimeError, ImportError)) or error.__traceback__ is None:
        return None
    traceback = error.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "")
    for blamed, setting in _BLAMED.items():
        if module == blamed or module.startswith(f"{blamed}."):
            said = " ".join(str(error).split()).rstrip(".")
            return f"{setting}: {said}; mend or change it." if setting else f"{said}."
    return None
