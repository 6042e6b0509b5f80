"""Reads chosen text columns of a predictions file: CSV, TSV, JSONL or Parquet.

Every error message names the file, the line or row, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import ParleyError
from src.files import FileRow, read_rows


@dataclass(frozen=True)
class PredictionTable:
    """The predictions and references of a file.

    Attributes:
        predictions: The texts of each prediction column, one per row.
        references: The references of each row, one or more.
    """

    predictions: dict[str, list[str]]
    references: list[list[str]]

    def __len__(self) -> int:
        return len(self.references)


def read_predictions(
    path: Path,
    reference_columns: Sequence[str],
    prediction_columns: Sequence[str],
    *,
    allow_empty: bool = False,
) -> PredictionTable:
    """Read predictions and their references from a file.

    Args:
        path: A file as `read_rows` takes it: `.csv`, `.tsv`, `.jsonl` or `.parquet`.
        reference_columns: Columns of references; a row's references are those of all of them. A JSONL or Parquet cell
            may also be a list of texts.
        prediction_columns: Columns of predictions, one text per cell.
        allow_empty: Accept empty predictions.

    Raises:
        ParleyError: The file cannot be read, lacks a column, or a cell is empty or not text.
    """
    reference_columns = list(dict.fromkeys(reference_columns))
    table = PredictionTable({column: [] for column in prediction_columns}, [])
    for row in read_rows(path):
        where = f"{path}, {row.place}"
        for column, texts in table.predictions.items():
            texts.append(_text(_cell(row, column, where), column, where, allow_empty))
        table.references.append([text for column in reference_columns for text in _texts(row, column, where)])
    if not table.references:
        raise ParleyError(f"{path} is empty: it has no rows to score.")
    return table


def _cell(row: FileRow, column: str, where: str) -> Any:
    if column not in row.cells:
        raise ParleyError(f"{where}: there is no column {column!r}; there are: {', '.join(row.cells) or 'none'}.")
    return row.cells[column]


def _texts(row: FileRow, column: str, where: str) -> list[str]:
    cell = _cell(row, column, where)
    texts = cell if isinstance(cell, list) else [cell]
    if not texts:
        raise ParleyError(f"{where}: column {column!r} is an empty list; give a reference or drop the row.")
    return [_text(text, column, where) for text in texts]


def _text(cell: Any, column: str, where: str, allow_empty: bool | None = None) -> str:
    """The cell as text; `allow_empty` is None for references, which must not be empty."""
    if cell is None or cell != cell:  # NaN is the one value that differs from itself
        raise ParleyError(f"{where}: column {column!r} has no value; fill it or drop the row.")
    if not isinstance(cell, str):
        raise ParleyError(f"{where}: column {column!r} holds {type(cell).__name__} {str(cell)[:40]!r}, not text.")
    if not cell.strip() and allow_empty is not True:
        way_out = "" if allow_empty is None else ", or pass --allow-empty to score an empty prediction 0"
        raise ParleyError(f"{where}: column {column!r} is empty; fill it or drop the row{way_out}.")
    return cell
