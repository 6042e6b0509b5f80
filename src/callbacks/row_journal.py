"""A write-ahead log of metric rows, for a logger that keeps its rows in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.writing import adding_to, whole_file


@dataclass(frozen=True)
class JournalRow:
    """One logged row of metrics.

    Attributes:
        number: How many rows of the run came before it.
        place: Its step in the logger's own count (W&B's `_step`).
        step: The trainer's step, where one was given.
        metrics: What was logged.
    """

    number: int
    place: int
    step: int | None
    metrics: dict[str, Any]


class RowJournal:
    """A JSON lines file of rows, which survives a kill of this process.

    Args:
        file: Made when the first row is written.
        encode: Converts a value that JSON does not know, as `default` of `json.dumps`.
    """

    def __init__(self, file: Path, encode: Callable[[Any], Any]) -> None:
        self._file = file
        self._encode = encode

    def append(self, row: JournalRow) -> None:
        """Append a row."""
        with adding_to(self._file), self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(vars(row), default=self._encode) + "\n")

    def read(self) -> list[JournalRow]:
        """All rows; a line that was only partly written is skipped."""
        rows = []
        for line in self._file.read_text(encoding="utf-8").splitlines() if self._file.is_file() else []:
            with suppress(ValueError, TypeError):
                rows.append(JournalRow(**json.loads(line)))
        return rows

    def keep(self, rows: list[JournalRow]) -> None:
        """Replace the file's content by these rows, atomically."""
        with whole_file(self._file) as stream:
            stream.writelines(json.dumps(vars(row)) + "\n" for row in rows)
