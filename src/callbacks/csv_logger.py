"""Lightning's CSV logger, made to continue the file of the run that is resumed."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from src.errors import ParleyError
from src.writing import adding_to, whole_file, writing


class _ContinuingWriter(ExperimentWriter):
    """Appends to an existing `metrics.csv`, which Lightning's own writer deletes."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.rows = 0
        if os.path.lexists(self.metrics_file_path):
            rows = self._read()
            self.metrics_keys = list(rows.fieldnames or [])
            self.rows = sum(1 for _ in rows)

    def _read(self) -> csv.DictReader[str]:
        """The rows in the file so far.

        Raises:
            ParleyError: The file is not a metric log.
        """
        file = Path(self.metrics_file_path)
        try:
            if not file.is_file():  # reading a pipe would block for ever
                raise ValueError("not a file")
            text = file.read_text(encoding="utf-8")
            if "\0" in text:
                raise ValueError("null characters")
        except (OSError, ValueError) as error:
            raise ParleyError(f"{file} is no metric log ({error}); move it away.") from error
        return csv.DictReader(io.StringIO(text, newline=""))

    def _check_log_dir_exists(self) -> None:
        """Override Lightning's check, which deletes an existing file."""

    def save(self) -> None:
        with adding_to(self.metrics_file_path):
            rows = len(self.metrics)
            super().save()
            self.rows += rows

    def log_hparams(self, params: dict[str, Any]) -> None:
        self.hparams.update(params)
        with whole_file(Path(self.log_dir) / self.NAME_HPARAMS_FILE) as stream:
            save_hparams_to_yaml(stream.name, self.hparams)

    def truncate(self, rows: int) -> None:
        """Delete all but the first `rows` rows."""
        file = Path(self.metrics_file_path)
        self.metrics = []
        if self.rows <= rows or not file.is_file():
            return
        self._rewrite([row for _, row in zip(range(rows), self._read(), strict=False)])
        self.rows = rows

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._rewrite(list(self._read()))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Replace the file atomically."""
        with whole_file(self.metrics_file_path) as stream:
            writer = csv.DictWriter(stream, fieldnames=self.metrics_keys, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


class RunLogger(CSVLogger):
    """Logs to `metrics.csv` in the run's directory; a resumed run continues it from the checkpoint's last row.

    The arguments are those of Lightning's `CSVLogger`.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> _ContinuingWriter:
        """The writer, on rank 0."""
        return self._writer()

    def _writer(self) -> _ContinuingWriter:
        if not isinstance(self._experiment, _ContinuingWriter):
            with writing(self.log_dir, "give another --trainer.default_root_dir"):
                self._experiment = _ContinuingWriter(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def save(self) -> None:
        """Write the rows logged since the last call."""
        self.experiment.save()

    def resume_state(self) -> dict[str, int]:
        """The state for a checkpoint: the number of rows so far."""
        self.save()
        return {"rows": self._writer().rows if rank_zero_only.rank == 0 else 0}  # type: ignore[attr-defined]

    @rank_zero_only
    def truncate(self, rows: int) -> None:
        """Delete all but the first `rows` rows."""
        self._writer().truncate(rows)
