"""Rows of CSV, TSV, JSON lines and Parquet files, each with its line or row number for error messages.

Nothing heavy is imported here; pyarrow is imported when a Parquet file is read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import ParleyError


@dataclass(frozen=True)
class FileRow:
    """A row and its place in the file.

    Attributes:
        place: `line 7`, where the row begins; in Parquet `row 7`, from 1.
        cells: Column to value: text in CSV and TSV, any JSON or Arrow value elsewhere.
    """

    place: str
    cells: dict[str, Any]


def read_rows(path: Path) -> Iterator[FileRow]:
    """Read a file row by row; blank lines are passed over.

    Args:
        path: A `.csv` (comma), `.tsv` (tab), `.jsonl` or `.json` (one object a line) or `.parquet` file. Text is UTF-8,
            a byte-order mark allowed.

    Raises:
        ParleyError: The file is not there, not readable, of another kind or malformed (with the line).
    """
    if path.is_dir():
        raise ParleyError(f"{path} is a directory; give a file ({', '.join(_READERS)}).")
    if not path.exists():
        raise ParleyError(f"there is no file {path}; check the path.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ParleyError(f"{path} ends in {path.suffix or 'no extension'!r}; give one of {', '.join(_READERS)}.")
    return reader(path)


def read_text(path: Path) -> str:
    """A file's text, its line ends as they are.

    Raises:
        ParleyError: The file cannot be read, or is not UTF-8 (with the line).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ParleyError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ParleyError(f"{path}, line {line} is not UTF-8; save the file as UTF-8.") from error


def refuse_surrogates(text: str, place: str) -> None:
    r"""Refuse a lone surrogate: JSON may escape one (`\ud83d`), and a command line hold a byte that is not UTF-8.

    Raises:
        ParleyError: The text has one; the message names `place`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise ParleyError(f"{place} has half a character in it ({half}); mend the text or drop it.") from error


def _csv_rows(path: Path, delimiter: str = ",") -> Iterator[FileRow]:
    text = read_text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # the default refuses a text of 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
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
        yield FileRow(f"line {line}", dict(zip(header, fields, strict=True)))


def _tsv_rows(path: Path) -> Iterator[FileRow]:
    return _csv_rows(path, "\t")


def _jsonl_rows(path: Path) -> Iterator[FileRow]:
    # Not str.splitlines: JSON texts may hold U+2028 and its like unescaped.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield FileRow(f"line {number}", json_cells(line, f"{path}, line {number}"))


def json_cells(line: str, place: str) -> dict[str, Any]:
    """A row of JSON lines.

    Args:
        line: Its text.
        place: What to call it.

    Raises:
        ParleyError: It is no JSON object, or has half a character in it.
    """
    try:
        cells = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ParleyError(f"{place} is not JSON ({error}); mend or drop it.") from error
    if not isinstance(cells, dict):
        raise ParleyError(f"{place} is {type(cells).__name__}, not a JSON object; mend or drop it.")
    if "\\u" in line:
        refuse_surrogates(json.dumps(cells, ensure_ascii=False), place)
    return cells


def _parquet_rows(path: Path) -> Iterator[FileRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:  # given a path, pyarrow takes `split=train/` in it for a partition column
            rows = pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ParleyError(f"{path} cannot be read as Parquet ({reason}); write it again.") from error
    for number, cells in enumerate(rows, start=1):
        yield FileRow(f"row {number}", cells)


_READERS: dict[str, Callable[[Path], Iterator[FileRow]]] = {
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".json": _jsonl_rows,
}
ROW_SUFFIXES = tuple(_READERS)
