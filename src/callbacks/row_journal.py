"""The rows of a run, written down before they are handed to a logger that keeps them in memory."""

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
    """A row that was logged.

    Attributes:
        number: How many rows of the run came before it.
        place: The logger's own number for it.
        step: The trainer's step, where one was given.
        metrics: What was logged.
    """

    number: int
    place: int
    step: int | None
    metrics: dict[str, Any]


class RowJournal:
    """Rows as lines of JSON; what is written is there whatever becomes of this process.

    Args:
        file: Made when the first row is written.
        encode: Says how a value that is not JSON's is written.
    """

    def __init__(self, file: Path, encode: Callable[[Any], Any]) -> None:
        self._file = file
        self._encode = encode

    def append(self, row: JournalRow) -> None:
        """Write a row down."""
        with adding_to(self._file), self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(vars(row), default=self._encode) + "\n")

    def read(self) -> list[JournalRow]:
        """All rows; a line that a killed process or a power cut left half written is none."""
        rows = []
        for line in self._file.read_text(encoding="utf-8").splitlines() if self._file.is_file() else []:
            with suppress(ValueError, TypeError):
                rows.append(JournalRow(**json.loads(line)))
        return rows

    def keep(self, rows: list[JournalRow]) -> None:
        """Forget all other rows, so that a kill leaves the file as it was or as it will be."""
        with whole_file(self._file) as stream:
            stream.writelines(json.dumps(vars(row)) + "\n" for row in rows)
