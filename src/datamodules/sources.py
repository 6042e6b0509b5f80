"""Where rows come from: the hub, JSON lines, CSV, Parquet or a directory saved by `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import ParleyError
from src.files import ROW_SUFFIXES, read_rows
from src.models.sources import first_line, hub_is_reachable

_ALIASES = (("train", "training"), ("validation", "valid", "val", "dev"), ("test",))
_SHARD = re.compile(r".*-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Attributes:
        rows: One dictionary a row, column to cell.
        places: What to call each row in messages (`dev.jsonl, line 7`).
        origin: What to call the whole.
    """

    rows: list[dict[str, Any]]
    places: list[str]
    origin: str

    def text(self, number: int, column: str) -> str:
        """A cell as text; one without a value is empty.

        Raises:
            ParleyError: The row lacks the column, or holds something else than text in it.
        """
        row = self.rows[number]
        if column not in row:
            raise ParleyError(f"{self.places[number]} has no column {column!r}; its columns are {', '.join(row)}.")
        cell = row[column]
        if cell is None or cell != cell:  # NaN, which pandas writes into Parquet, is unlike itself
            return ""
        if not isinstance(cell, str):
            raise ParleyError(
                f"{self.places[number]}: column {column!r} holds {type(cell).__name__} {str(cell)[:40]!r}, not text."
            )
        return cell


def read_split(path: str, split: str) -> Rows:
    """Read one split.

    Args:
        path: A file, a directory of files named after their splits, a directory saved by `datasets`, or a hub name.
        split: `train`, `validation` (also found as `dev` or `val`), `test` or another. A single file is every split.

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
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", path) and place.suffix not in ROW_SUFFIXES:
        return _read_hub(path, split)
    raise ParleyError(f"there is no file or directory {path!r}; give a path that exists, or a hub name (owner/name).")


def require_columns(rows: Rows, columns: Iterable[str]) -> None:
    """Refuse rows that lack a column, all of them or one.

    Raises:
        ParleyError: Names the column that is missing, where, and those that are there.
    """
    for number in range(len(rows.rows)):
        for column in columns:
            rows.text(number, column)


def _aliases(split: str) -> list[str]:
    """The names that a split goes by, the one asked for first."""
    return [split, *(name for names in _ALIASES if split in names for name in names if name != split)]


def _files_of_split(directory: Path, split: str) -> list[Path]:
    """The file of a split, or its shards, in the directory itself or its `data/`; the name asked for goes first."""
    folders = [folder for folder in (directory, directory / "data") if folder.is_dir()]
    files = [file for folder in folders for file in sorted(folder.iterdir()) if file.suffix.lower() in ROW_SUFFIXES]
    for name in _aliases(split):
        named = [file for file in files if name.lower() in re.split(r"[._-]", file.stem.lower())]
        for folder in folders:
            for suffix in ROW_SUFFIXES:  # two formats in one folder hold the same rows: one of them is read
                same = [file for file in named if file.parent == folder and file.suffix.lower() == suffix]
                if same:
                    return _one_file_or_shards(same, name)
    found = ", ".join(file.name for file in files) or f"none of {', '.join(ROW_SUFFIXES)}"
    raise ParleyError(f"no file for split {split!r} in {directory} (found: {found}); name another split or path.")


def _one_file_or_shards(files: list[Path], name: str) -> list[Path]:
    exact = [file for file in files if file.stem.lower() == name.lower()]
    if len(files) == 1 or all(_SHARD.fullmatch(file.stem) for file in files):
        return files
    if exact:
        return exact
    names = ", ".join(file.name for file in files)
    raise ParleyError(
        f"{files[0].parent} has several files for split {name!r} ({names}); give one of them as the path."
    )


def _read_files(files: list[Path]) -> Rows:
    read = [(file, row) for file in files for row in read_rows(file)]
    origin = str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
    return Rows([row.cells for _, row in read], [f"{file}, {row.place}" for file, row in read], origin)


def _read_saved(directory: Path, split: str) -> Rows:
    from datasets import load_from_disk

    try:
        saved = load_from_disk(str(directory))
    except Exception as error:  # a damaged directory makes datasets and pyarrow raise of every kind
        raise ParleyError(f"{directory} cannot be loaded by datasets ({first_line(error)}); save it again.") from error
    if isinstance(saved, dict):
        saved = _split_of(saved, split, str(directory))
    return _arrow_rows(saved, str(directory))


def _read_hub(name: str, split: str) -> Rows:
    from datasets import load_dataset

    reachable = hub_is_reachable()
    try:
        with _offline(not reachable):
            loaded = load_dataset(name)
    except Exception as error:  # datasets raises a dozen types for "not reachable" and "not there"
        if reachable:
            raise ParleyError(f"dataset {name!r} cannot be had from the hub: {first_line(error)}") from error
        raise ParleyError(
            f"{name!r} is neither a directory here nor a dataset in the local cache, and the Hugging Face hub cannot "
            "be reached; give a path, or connect."
        ) from error
    return _arrow_rows(_split_of(loaded, split, name), name)


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Make `datasets` look into its cache at once: it would try an unreachable hub for half a minute first."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _split_of(splits: dict[str, Any], split: str, origin: str) -> Any:
    name = next((alias for alias in _aliases(split) if alias in splits), None)
    if name is None:
        raise ParleyError(f"{origin} has no split {split!r} (it has {', '.join(splits)}); name one of these.")
    return splits[name]


def _arrow_rows(dataset: Any, origin: str) -> Rows:
    rows = dataset.to_list()
    return Rows(rows, [f"{origin}, row {number}" for number in range(1, len(rows) + 1)], origin)
