"""Lightning's CSV log, which a resumed run goes on writing."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from src.errors import ParleyError


class _ContinuingWriter(ExperimentWriter):
    """Adds to a `metrics.csv` that is there already, where Lightning's own deletes it."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.rows = 0
        if Path(self.metrics_file_path).is_file():
            with Path(self.metrics_file_path).open(newline="") as stream:
                reader = csv.DictReader(stream)
                self.metrics_keys = list(reader.fieldnames or [])
                self.rows = sum(1 for _ in reader)

    def _check_log_dir_exists(self) -> None:
        """Nothing is deleted."""

    def save(self) -> None:
        self.rows += len(self.metrics)
        super().save()

    def truncate(self, rows: int) -> None:
        """Forget what was logged after the first so many rows."""
        file = Path(self.metrics_file_path)
        self.metrics = []
        if self.rows <= rows or not file.is_file():
            return
        with file.open(newline="") as stream:
            kept = [row for _, row in zip(range(rows), csv.DictReader(stream), strict=False)]
        self._rewrite(kept)
        self.rows = rows

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        self._rewrite(rows)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Replace the file, so that a kill leaves the one or the other."""
        temporary = Path(self.metrics_file_path).with_suffix(".tmp")
        with temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=self.metrics_keys, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.metrics_file_path)


class RunLogger(CSVLogger):
    """`metrics.csv` in the run's directory; a resumed run goes on where its checkpoint was written.

    The arguments are those of Lightning's `CSVLogger`.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> _ContinuingWriter:
        """The writer, on rank 0."""
        return self._writer()

    def _writer(self) -> _ContinuingWriter:
        if not isinstance(self._experiment, _ContinuingWriter):
            try:
                Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ParleyError(
                    f"{self.root_dir} cannot be written ({error.strerror}); give another --trainer.default_root_dir."
                ) from error
            self._experiment = _ContinuingWriter(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def save(self) -> None:
        """Write what was logged since the last time."""
        self.experiment.save()

    def resume_state(self) -> dict[str, int]:
        """What a checkpoint keeps: how many rows there are by now."""
        self.save()
        return {"rows": self._writer().rows if rank_zero_only.rank == 0 else 0}  # type: ignore[attr-defined]

    @rank_zero_only
    def truncate(self, rows: int) -> None:
        """Forget what was logged after the first so many rows."""
        self._writer().truncate(rows)
