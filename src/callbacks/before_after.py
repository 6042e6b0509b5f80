"""A table of the answers before and after training."""

from __future__ import annotations

import csv
import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from src.callbacks.run_directory import run_directory
from src.internals import logged_step
from src.writing import as_text, whole_file

log = logging.getLogger(__name__)
COLUMNS = ("query", "response_before", "response_after")
REWARDS = ("reward_before", "reward_after", "reward_diff")


class BeforeAfterTable(Callback):
    """Writes the answers before and after training; with a reward, also their rewards, sorted by the greatest rise.

    After every validation to `before_after/step-….csv` in the run's directory and to W&B as a table; after a test to
    `before_after.csv`. Nothing is written for Modules without `comparisons`.

    Args:
        quote_formulas: In the file, put an apostrophe before cells that a spreadsheet would take for formulas.
    """

    def __init__(self, quote_formulas: bool = False) -> None:
        self.quote_formulas = quote_formulas

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation split's table."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, f"before_after/step-{trainer.global_step:07d}.csv")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the test split's table."""
        self._write(trainer, pl_module, "before_after.csv")

    def _write(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        comparisons: list[Any] | None = getattr(pl_module, "comparisons", None)
        if comparisons is None:
            return
        file = run_directory(trainer) / name  # a collective call: on every process
        if not trainer.is_global_zero or not comparisons:
            return
        is_scored = comparisons[0].reward_diff is not None
        rows = sorted(comparisons, key=lambda row: -row.reward_diff) if is_scored else comparisons
        names, given = list(rows[0].before), [*COLUMNS, *(REWARDS if is_scored else ())]
        columns = [*given, *(f"{name}_{time}" for name in names for time in ("before", "after"))]
        cells = [
            [getattr(row, column) for column in given]
            + [figures[name] for name in names for figures in (row.before, row.after)]
            for row in rows
        ]
        with whole_file(file) as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            for row in cells:
                quoted = (as_text(cell) if isinstance(cell, str) else cell for cell in row)
                writer.writerow(quoted if self.quote_formulas else row)
        log.info("Answers before and after: %s", file)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("before_after", columns, cells, step=logged_step(trainer))
