"""Reads rows from the hub, JSON lines, CSV, Parquet or a directory saved by `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.datamodules.rows import Notes
from src.errors import ParleyError
from src.files import ROW_SUFFIXES, read_rows
from src.models.sources import first_line, hub_is_reachable

if TYPE_CHECKING:
    from datasets import Dataset as ArrowDataset

_ALIASES = (("train", "training"), ("validation", "valid", "val", "dev"), ("test",))
_SHARD = re.compile(r".*-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Attributes:
        rows: One dictionary per row, column to cell.
        places: The place of each row, for messages (`dev.jsonl, line 7`).
        origin: The source's name, for messages.
        first: The number of the first one in the source.
        notes: Where is counted what is left out of them.
    """

    rows: list[dict[str, Any]]
    places: list[str]
    origin: str
    first: int = 0
    notes: Notes = field(default_factory=Notes, compare=False)

    def name(self, number: int) -> str:
        """What a row is called that has no name of its own: its number in the source.

        Args:
            number: Of the row among these.
        """
        return str(self.first + number)

    def text(self, number: int, column: str) -> str:
        """A cell as text; a missing value gives an empty text.

        Raises:
            ParleyError: The row lacks the column, or the cell is not text.
        """
        row = self.rows[number]
        if column not in row:
            raise ParleyError(f"{self.places[number]} has no column {column!r}; its columns are {', '.join(row)}.")
        cell = row[column]
        if cell is None or cell != cell:  # NaN, which pandas writes into Parquet, differs from itself
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
        split: `train`, `validation` (also found as `dev` or `val`), `test` or another. A single file serves as every
            split.

    Returns:
        The rows in the source's order.

    Raises:
        ParleyError: The source does not exist, cannot be read, or has no such split.
    """
    found = find_split(path, split)
    return _read_files(found) if isinstance(found, list) else _arrow_rows(found, path)


def find_split(path: str, split: str) -> list[Path] | ArrowDataset:
    """Find one split without reading it.

    Args:
        path: As for `read_split`.
        split: As for `read_split`.

    Returns:
        Its files; where `datasets` has it, the dataset, whose rows stay on the disk.

    Raises:
        ParleyError: Nothing there, or no such split.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir() and not _is_saved(place):
        return _files_of_split(place, split)
    found = _load_saved(place) if place.is_dir() else _load_hub(path)
    return _split_of(found, split, path) if isinstance(found, dict) else found


def name_of(files: list[Path]) -> str:
    """What to call a split's files in messages."""
    return str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"


def only_table(path: str) -> Path | None:
    """The single file that is the whole source: the path itself, or the only one in its directory; otherwise None."""
    place = Path(path).expanduser()
    if place.is_dir() and not _is_saved(place):
        files = _row_files(place)
        return files[0] if len(files) == 1 else None
    return place if place.is_file() else None


def holds_split(path: str, split: str) -> bool:
    """Whether a source has its own split of this name; a source that is a single table has none.

    Args:
        path: As for `read_split`.
        split: As for `read_split`.

    Raises:
        ParleyError: The source cannot be read, or has several files for the split.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return False
    if not place.is_dir():
        names: Iterable[str] = _load_hub(path)
    elif _is_saved(place):
        saved = _load_saved(place)
        names = saved if isinstance(saved, dict) else ()
    else:
        return len(_row_files(place)) > 1 and bool(_files_named(place, split))
    return len(set(names)) > 1 and not set(names).isdisjoint(aliases(split))


def aliases(split: str) -> list[str]:
    """All names of a split, the given one first."""
    return [split, *(name for names in _ALIASES if split in names for name in names if name != split)]


def _files_of_split(directory: Path, split: str) -> list[Path]:
    """The file of a split, or its shards, in the directory or its `data/`; the given name has precedence."""
    if named := _files_named(directory, split):
        return named
    found = ", ".join(file.name for file in _row_files(directory)) or f"none of {', '.join(ROW_SUFFIXES)}"
    raise ParleyError(f"no file for split {split!r} in {directory} (found: {found}); name another split or path.")


def _row_files(directory: Path) -> list[Path]:
    folders = [folder for folder in (directory, directory / "data") if folder.is_dir()]
    return [file for folder in folders for file in sorted(folder.iterdir()) if file.suffix.lower() in ROW_SUFFIXES]


def _files_named(directory: Path, split: str) -> list[Path]:
    files = _row_files(directory)
    for name in aliases(split):
        named = [file for file in files if name.lower() in re.split(r"[._-]", file.stem.lower())]
        for folder in (directory, directory / "data"):
            for suffix in ROW_SUFFIXES:  # two formats in one folder are taken to hold the same rows: one is read
                same = [file for file in named if file.parent == folder and file.suffix.lower() == suffix]
                if same:
                    return _one_file_or_shards(same, name)
    return []


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
    return Rows([row.cells for _, row in read], [f"{file}, {row.place}" for file, row in read], name_of(files))


def _is_saved(directory: Path) -> bool:
    return (directory / "dataset_dict.json").exists() or (directory / "state.json").exists()


def _load_saved(directory: Path) -> Any:
    from datasets import load_from_disk

    try:
        return load_from_disk(str(directory))
    except Exception as error:  # datasets and pyarrow raise many types for damaged directories
        raise ParleyError(f"{directory} cannot be loaded by datasets ({first_line(error)}); save it again.") from error


def _load_hub(name: str) -> Any:
    from datasets import load_dataset

    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) or Path(name).suffix in ROW_SUFFIXES:
        raise ParleyError(
            f"there is no file or directory {name!r}; give a path that exists, or a hub name (owner/name)."
        )
    reachable = hub_is_reachable()
    try:
        with _offline(not reachable):
            return load_dataset(name)
    except Exception as error:  # datasets raises many types for "not reachable" and "does not exist"
        if reachable:
            raise ParleyError(f"dataset {name!r} cannot be had from the hub: {first_line(error)}") from error
        raise ParleyError(
            f"{name!r} is neither a directory here nor a dataset in the local cache, and the Hugging Face hub cannot "
            "be reached; give a path, or connect."
        ) from error


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Within the block let `datasets` use its cache only, since it would retry an unreachable hub for half a minute."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _split_of(splits: dict[str, Any], split: str, origin: str) -> Any:
    name = next((alias for alias in aliases(split) if alias in splits), None)
    if name is None:
        raise ParleyError(f"{origin} has no split {split!r} (it has {', '.join(splits)}); name one of these.")
    return splits[name]


def _arrow_rows(dataset: ArrowDataset, origin: str) -> Rows:
    rows = dataset.to_list()
    return Rows(rows, [f"{origin}, row {number}" for number in range(1, len(rows) + 1)], origin)
