"""Which rows of a source are examples: found out once, kept on the disk, a few bytes each."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from src.datamodules.download import ADVICE
from src.datamodules.rows import Note, Notes
from src.datamodules.splits import SplitSpec
from src.errors import ParleyError
from src.writing import writing

INDEX_VERSION = 1  # raise it when the meaning of an entry changes, or that of what the DataModules make of a row
ENTRY = np.dtype(
    [
        ("place", "<i8"),  # of the source's row, where it can be read from
        ("number", "<i8"),  # of the source's row, from 0
        ("row", "<i4"),  # of the answers that it has
        ("example", "<i4"),  # of those that are made of this answer
        ("size", "<i4"),  # in characters
        ("question", "<u8"),  # digest
    ]
)
ENTRIES, ABOUT = "entries.bin", "about.json"
AT_A_TIME = 10_000  # entries that are in memory together


class RowIndex:
    """The examples of a split, in the source's order.

    Args:
        directory: Where `indexed` has put it.

    Attributes:
        notes: What is left out of them.
    """

    def __init__(self, directory: Path) -> None:
        about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
        self.directory = directory
        self.notes = Notes({text: Note(**note) for text, note in about["notes"].items()})
        self._count = (directory / ENTRIES).stat().st_size // ENTRY.itemsize

    def __len__(self) -> int:
        return self._count

    def entries(self, start: int, stop: int) -> np.ndarray:
        """Some of them, as records of `ENTRY`; none stay in memory.

        Args:
            start: The first.
            stop: The one after the last.
        """
        return np.fromfile(self.directory / ENTRIES, ENTRY, count=max(0, stop - start), offset=start * ENTRY.itemsize)

    def questions(self) -> Iterator[np.ndarray]:
        """The digests of all questions, some at a time."""
        for start in range(0, len(self), AT_A_TIME):
            yield self.entries(start, min(start + AT_A_TIME, len(self)))["question"]


def in_both(train: RowIndex, validation: RowIndex) -> tuple[int, int]:
    """How many questions of validation are in train too, and how many it has; only the former are in memory."""
    asked = np.unique(np.concatenate([np.empty(0, np.uint64), *validation.questions()]))
    found = {question for some in train.questions() for question in some[np.isin(some, asked)].tolist()}
    return len(found), len(asked)


def question_digest(fields: Mapping[str, str]) -> int:
    """Tell a question from others: rows with equal fields have equal ones."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(fields):
        text = fields[name].encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little")


def indexed(
    cache_dir: Path,
    key: Sequence[Any],
    split: SplitSpec,
    scan: Callable[[Notes], Iterable[tuple[int, ...]]],
) -> RowIndex:
    """Find an index in the cache, or make it and put it there.

    The directory is written under another name and renamed, as that of tokens is. A slice counts questions, for which
    all of their digests are in memory for a while.

    Args:
        cache_dir: Where the caches are.
        key: Everything that the entries depend on but the slice, JSON-serialisable.
        split: Which questions are wanted.
        scan: Goes through the source: gives what an `ENTRY` has, in its order, and counts what it leaves out.

    Raises:
        ParleyError: The source cannot be read, or the cache not be written.
    """
    whole_key = [INDEX_VERSION, key, split.start, split.stop]
    digest = hashlib.sha256(json.dumps(whole_key, sort_keys=True).encode()).hexdigest()[:32]
    directory = cache_dir / f"rows-{digest}"
    if not directory.exists():
        temporary = cache_dir / f".{directory.name}-{uuid.uuid4().hex}"
        try:
            with writing(cache_dir, ADVICE):
                temporary.mkdir(parents=True)
                _write(temporary, split, scan)
                temporary.rename(directory)
        except ParleyError:
            if not directory.exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return RowIndex(directory)


def _write(directory: Path, split: SplitSpec, scan: Callable[[Notes], Iterable[tuple[int, ...]]]) -> None:
    notes, file = Notes(), directory / ENTRIES
    with file.open("wb") as stream:
        several: list[tuple[int, ...]] = []
        for entry in scan(notes):
            several.append(entry)
            if len(several) == AT_A_TIME:
                np.array(several, ENTRY).tofile(stream)
                several.clear()
        np.array(several, ENTRY).tofile(stream)
    if split.start is not None or split.stop is not None:
        _cut(file, split)
    about = {"notes": {text: asdict(note) for text, note in notes.notes.items()}}
    (directory / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _cut(file: Path, split: SplitSpec) -> None:
    """Leave only the entries of the questions that are wanted, which are counted as they first come."""
    if not file.stat().st_size:
        return
    entries = np.memmap(file, ENTRY, "r")
    _, first, kind = np.unique(entries["question"], return_index=True, return_inverse=True)
    numbers = np.empty(len(first), np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    start, stop = split.bounds(len(first))
    wanted = (numbers >= start) & (numbers < stop)
    part = file.with_suffix(".part")
    with part.open("wb") as stream:
        for at in range(0, len(entries), AT_A_TIME):
            entries[at : at + AT_A_TIME][wanted[kind[at : at + AT_A_TIME]]].tofile(stream)
    del entries
    part.replace(file)
