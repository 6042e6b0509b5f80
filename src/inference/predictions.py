"""Reads chosen text columns of a predictions file: CSV, TSV, JSONL or Parquet.

Every complaint names the file, the place in it and what to do.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import ParleyError


@dataclass(frozen=True)
class PredictionTable:
    """Texts of a file, column by column.

    Attributes:
        predictions: For each prediction column its texts, one a row.
        references: For each row its one or more references.
    """

    predictions: dict[str, list[str]]
    references: list[list[str]]

    def __len__(self) -> int:
        return len(self.references)


@dataclass(frozen=True)
class _Row:
    place: str
    cells: Mapping[str, Any]


def read_predictions(
    path: Path,
    reference_columns: Sequence[str],
    prediction_columns: Sequence[str],
    *,
    allow_empty: bool = False,
) -> PredictionTable:
    """Read a file with predictions and what they should have been.

    Args:
        path: A `.csv` (comma), `.tsv` (tab), `.jsonl` (one object a line) or `.parquet` file, in UTF-8.
        reference_columns: Columns that hold references; all of them count for a row. A JSONL or Parquet cell may also
            be a list of texts.
        prediction_columns: Columns that hold predictions, one text a cell.
        allow_empty: Take an empty prediction for what a model said, instead of refusing it.

    Raises:
        ParleyError: The file cannot be read, lacks a column, or a cell is empty or not text.
    """
    readers: dict[str, Callable[[Path], Iterator[_Row]]] = {
        ".csv": lambda path: _csv_rows(path, ","),
        ".tsv": lambda path: _csv_rows(path, "\t"),
        ".jsonl": _jsonl_rows,
        ".parquet": _parquet_rows,
    }
    if path.is_dir():
        raise ParleyError(f"{path} is a directory; give a predictions file ({', '.join(readers)}).")
    if not path.exists():
        raise ParleyError(f"there is no file {path}; check the path.")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ParleyError(f"{path} ends in {path.suffix or 'no extension'!r}; give one of {', '.join(readers)}.")
    reference_columns = list(dict.fromkeys(reference_columns))
    table = PredictionTable({column: [] for column in prediction_columns}, [])
    for row in reader(path):
        where = f"{path}, {row.place}"
        for column, texts in table.predictions.items():
            texts.append(_text(_cell(row, column, where), column, where, allow_empty))
        table.references.append([text for column in reference_columns for text in _texts(row, column, where)])
    if not table.references:
        raise ParleyError(f"{path} has no rows; nothing to score.")
    return table


def _cell(row: _Row, column: str, where: str) -> Any:
    if column not in row.cells:
        raise ParleyError(f"{where}: there is no column {column!r}; there are: {', '.join(row.cells) or 'none'}.")
    return row.cells[column]


def _texts(row: _Row, column: str, where: str) -> list[str]:
    cell = _cell(row, column, where)
    texts = cell if isinstance(cell, list) else [cell]
    if not texts:
        raise ParleyError(f"{where}: column {column!r} is an empty list; give a reference or drop the row.")
    return [_text(text, column, where) for text in texts]


def _text(cell: Any, column: str, where: str, allow_empty: bool | None = None) -> str:
    """The cell as text; `allow_empty` is None where an empty one is never right."""
    if cell is None or cell != cell:  # NaN is the one value that differs from itself
        raise ParleyError(f"{where}: column {column!r} has no value; fill it or drop the row.")
    if not isinstance(cell, str):
        raise ParleyError(f"{where}: column {column!r} holds {type(cell).__name__} {str(cell)[:40]!r}, not text.")
    if not cell.strip() and allow_empty is not True:
        way_out = "" if allow_empty is None else ", or pass --allow-empty to score an empty prediction 0"
        raise ParleyError(f"{where}: column {column!r} is empty; fill it or drop the row{way_out}.")
    return cell


def _decoded(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ParleyError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ParleyError(f"{path}, line {line} is not UTF-8; save the file as UTF-8.") from error
    if not text.strip():
        raise ParleyError(f"{path} is empty; nothing to score.")
    return text


def _csv_rows(path: Path, delimiter: str) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1  # where the record starts: a quoted text may go on over several lines
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ParleyError(f"{path}, line {line}: {error}; check the quotes of that row.") from error
        if not fields:
            continue
        if not header:
            header = fields
            twice = [name for name in header if header.count(name) > 1]
            if twice:
                raise ParleyError(f"{path}, line {line}: two columns are named {twice[0]!r}; rename one.")
            continue
        if len(fields) != len(header):
            raise ParleyError(
                f"{path}, line {line} has {len(fields)} fields where the header has {len(header)}; "
                "quote texts that hold separators or line breaks."
            )
        yield _Row(f"line {line}", dict(zip(header, fields, strict=True)))


def _jsonl_rows(path: Path) -> Iterator[_Row]:
    # Not str.splitlines: JSON texts may hold U+2028 and its like unescaped.
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ParleyError(f"{path}, line {number} is not JSON ({error}); mend or drop it.") from error
        if not isinstance(cells, dict):
            raise ParleyError(f"{path}, line {number} is {type(cells).__name__}, not a JSON object; mend or drop it.")
        yield _Row(f"line {number}", cells)


def _parquet_rows(path: Path) -> Iterator[_Row]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ParleyError(f"{path} cannot be read as Parquet ({reason}); write it again.") from error
    for number, cells in enumerate(rows, start=1):
        yield _Row(f"row {number}", cells)
