"""Tables of generated text beside its references: samples while training, all predictions after a test."""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from src.callbacks.gather import Prediction, Row, gather, rows_of
from src.callbacks.run_directory import run_directory
from src.internals import logged_step
from src.writing import as_text, whole_file

log = logging.getLogger(__name__)


class SampleTable(Callback):
    """Shows the same few examples after every validation: prompt, references and output, or a pair and its rewards.

    They go to W&B as a table, to TensorBoard as text, and to `samples/step-….jsonl` in the run's directory.

    Args:
        num_samples: How many; the first of the split's examples that are validated.
    """

    def __init__(self, num_samples: int = 8) -> None:
        self.num_samples = num_samples
        self._predictions: list[Row] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first `num_samples` examples seen so far, in the split's order."""
        seen = [*self._predictions, *rows_of(outputs, batch)]
        self._predictions = sorted(seen, key=lambda row: row.index)[: self.num_samples]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table."""
        rows = gather(self._predictions, trainer)[: self.num_samples]
        self._predictions = []
        directory = run_directory(trainer)
        if not trainer.is_global_zero or trainer.sanity_checking or not rows:
            return
        file = directory / "samples" / f"step-{trainer.global_step:07d}.jsonl"
        with whole_file(file) as stream:
            stream.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                table = [list(row.cells().values()) for row in rows]
                logger.log_table("samples", list(rows[0].cells()), table, step=logged_step(trainer))
            elif isinstance(logger, TensorBoardLogger):
                text = "\n\n---\n\n".join(row.text() for row in rows)
                logger.experiment.add_text("samples", text, logged_step(trainer))


class PredictionWriter(Callback):
    """Writes every answer of `parley test` and `parley predict` to a CSV file that `parley score` reads.

    Columns: `id, prompt, reference1, reference2, …, prediction`. Of a reward model they are `id, prompt, chosen,
    rejected, chosen_reward, rejected_reward`.

    Args:
        filename: In the run's directory.
        quote_formulas: Put an apostrophe before cells that a spreadsheet would take for formulas.
    """

    def __init__(self, filename: str = "predictions.csv", quote_formulas: bool = False) -> None:
        self.filename = filename
        self.quote_formulas = quote_formulas
        self._predictions: list[Row] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the answers."""
        self._predictions += rows_of(outputs, batch)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the answers."""
        self._predictions += rows_of(outputs, batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        self._write(trainer)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        rows = gather(self._predictions, trainer)
        self._predictions = []
        file = run_directory(trainer) / self.filename
        if not trainer.is_global_zero:
            return
        width = max((len(row.references) for row in rows if isinstance(row, Prediction)), default=0)
        with whole_file(file) as stream:
            writer = csv.writer(stream)
            for number, row in enumerate(rows):
                cells = row.cells()
                if isinstance(row, Prediction):
                    padded = [*row.references, *[""] * (width - len(row.references))]
                    columns = {f"reference{place + 1}": text for place, text in enumerate(padded)}
                    cells = {"id": row.id, "prompt": row.prompt, **columns, "prediction": row.prediction}
                if number == 0:
                    writer.writerow(cells)
                texts = [value if isinstance(value, str) else repr(value) for value in cells.values()]
                writer.writerow(map(as_text, texts) if self.quote_formulas else texts)
        log.info("%d predictions written to %s", len(rows), file)
