"""Where rows come from: the hub, JSONL, CSV, Parquet or a directory saved by `datasets`.

Every reader gives plain dictionaries and names the place of what it cannot read.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import ParleyError

_ALIASES = {"validation": ("validation", "valid", "val", "dev"), "train": ("train", "training"), "test": ("test",)}
_FORMATS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Rows:
    """The rows of one split and what identifies their content.

    Attributes:
        rows: One dictionary a row, column to cell.
        fingerprint: Changes when the content does; keys the cache of tokenised data.
        origin: What to call the place in messages.
    """

    rows: list[dict[str, Any]]
    fingerprint: str
    origin: str


def read_split(path: str, split: str) -> Rows:
    """Read one split.

    Args:
        path: A file, a directory of files named after their splits, a directory saved by `datasets`, or a hub name.
        split: `train`, `validation` (also found as `dev` or `val`), `test` or another name. A single file is every split.

    Returns:
        The rows in the order in which the source has them.

    Raises:
        ParleyError: Nothing there, nothing readable, or no such split.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return _read_files([place])
    if place.is_dir():
        if (place / "dataset_dict.json").exists() or (place / "state.json").exists():
            return _read_saved(place, split)
        return _read_files(_files_of_split(place, split))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not path.startswith((".", "/", "~")) and place.suffix not in _FORMATS:
        return _read_hub(path, split)
    raise ParleyError(f"there is no file or directory {path!r}; give a path that exists, or a hub name (owner/name).")


def _aliases(split: str) -> tuple[str, ...]:
    return next((names for names in _ALIASES.values() if split in names), (split,))


def _files_of_split(directory: Path, split: str) -> list[Path]:
    files = [file for folder in (directory, directory / "data") if folder.is_dir() for file in sorted(folder.iterdir())]
    files = [file for file in files if file.suffix in _FORMATS]
    wanted = set(_aliases(split))
    matching = [file for file in files if wanted & set(re.split(r"[._-]", file.stem.lower()))]
    for suffix in _FORMATS:  # where two formats hold the same split, one of them is read, not both
        if same := [file for file in matching if file.suffix == suffix]:
            return same
    found = ", ".join(file.name for file in files) or "no .jsonl, .csv or .parquet file"
    raise ParleyError(
        f"no file for split {split!r} in {str(directory)!r} (found: {found}); name another split or path."
    )


def _read_files(files: list[Path]) -> Rows:
    digest = hashlib.sha256()
    rows: list[dict[str, Any]] = []
    for file in files:
        content = file.read_bytes()
        digest.update(content)
        if file.suffix == ".parquet":
            rows += _parquet_rows(file)
            continue
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise ParleyError(
                f"{file}, line {line}: not UTF-8 text; convert the file (iconv -t UTF-8) first."
            ) from error
        rows += _csv_rows(file, text) if file.suffix == ".csv" else _jsonl_rows(file, text)
    return Rows(rows, digest.hexdigest(), ", ".join(map(str, files)))


def _jsonl_rows(file: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ParleyError(
                f"{file}, line {number}: malformed JSON ({error.msg}); mend or remove the line."
            ) from error
        if not isinstance(row, dict):
            raise ParleyError(f"{file}, line {number}: a JSON object was expected, not {type(row).__name__}.")
        yield row


def _csv_rows(file: Path, text: str) -> Iterator[dict[str, Any]]:
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise ParleyError(f"{file} is empty; a CSV file needs a header line.")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ParleyError(
                    f"{file}, line {reader.line_num}: {len(cells)} cells where the header has {len(header)}; "
                    "quote cells that hold commas."
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ParleyError(f"{file}, line {reader.line_num}: malformed CSV ({error}).") from error


def _parquet_rows(file: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ParleyError(f"{file} cannot be read as Parquet: {_first_line(error)}") from error


def _read_saved(directory: Path, split: str) -> Rows:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(directory))
    except Exception as error:
        raise ParleyError(f"{directory} cannot be loaded by datasets: {_first_line(error)}") from error
    if isinstance(saved, DatasetDict):
        name = next((alias for alias in _aliases(split) if alias in saved), None)
        if name is None:
            raise ParleyError(f"no split {split!r} in {directory} (it has {', '.join(saved)}); name one of these.")
        saved = saved[name]
    return Rows(saved.to_list(), saved._fingerprint, str(directory))


def _read_hub(name: str, split: str) -> Rows:
    from datasets import load_dataset

    try:
        loaded = load_dataset(name)
    except Exception as error:  # datasets raises a dozen types for "not reachable" and "not there"
        raise ParleyError(
            f"dataset {name!r} is neither on this machine nor reachable on the hub ({_first_line(error)}); "
            "check the name and the network, or give a local path."
        ) from error
    found = next((alias for alias in _aliases(split) if alias in loaded), None)
    if found is None:
        raise ParleyError(f"dataset {name!r} has no split {split!r} (it has {', '.join(loaded)}); name one of these.")
    return Rows(loaded[found].to_list(), loaded[found]._fingerprint, name)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def require_columns(rows: Rows, columns: Iterable[str]) -> None:
    """Refuse rows that lack a column.

    Raises:
        ParleyError: Names the column that is missing and those that are there.
    """
    have = rows.rows[0].keys() if rows.rows else set()
    for column in columns:
        if rows.rows and column not in have:
            raise ParleyError(f"{rows.origin} has no column {column!r}; its columns are {', '.join(have)}.")
