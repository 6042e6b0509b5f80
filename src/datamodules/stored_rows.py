"""Rows that stay on the disk: gone through once from end to end, then read from any place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.datamodules.sources import find_split, name_of
from src.errors import ParleyError
from src.files import json_cells

if TYPE_CHECKING:
    from datasets import Dataset as ArrowDataset
    from pyarrow.parquet import ParquetFile

AT_A_TIME = 1_000  # rows of Parquet and Arrow that are in memory together
BYTES_AT_A_TIME = 1 << 20  # of each column of a Parquet file, whose row groups may be as large as the file
JSON_LINES, PARQUET = (".jsonl", ".json"), (".parquet",)


@dataclass(frozen=True)
class StoredRow:
    """A row and where it is.

    Attributes:
        place: Where it can be read from again.
        name: What to call it in messages.
        cells: Column to value.
    """

    place: int
    name: str
    cells: dict[str, Any]


class StoredRows(ABC):
    """The rows of one split, on the disk.

    Attributes:
        origin: What to call the whole.
    """

    origin: str

    @abstractmethod
    def key(self) -> list[Any]:
        """What changes when the rows do, JSON-serialisable."""

    @abstractmethod
    def scan(self) -> Iterator[StoredRow]:
        """All rows in the source's order.

        Raises:
            ParleyError: They cannot be read, or one is malformed.
        """

    @abstractmethod
    def read(self, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The cells of some rows.

        Args:
            places: As `scan` gave them, each once and in its order.

        Raises:
            ParleyError: They cannot be read.
        """


def stored_rows(path: str, split: str) -> StoredRows:
    """Find the rows of one split without reading them.

    Args:
        path: As for `read_split`; files must be JSON lines or Parquet. What comes from the hub is on the disk once
            `datasets` has fetched it.
        split: As for `read_split`.

    Raises:
        ParleyError: There are none, or in files that can only be read as a whole.
    """
    found = find_split(path, split)
    if not isinstance(found, list):
        return ArrowRows(found, path)
    suffixes = {file.suffix.lower() for file in found}
    if suffixes <= set(JSON_LINES):
        return JsonLines(found)
    if suffixes <= set(PARQUET):
        return ParquetRows(found)
    raise ParleyError(
        f"streaming reads JSON lines (.jsonl), Parquet and the hub's data, and {found[0]} is neither; write it as "
        "one of these, or leave streaming out."
    )


class _FileRows(StoredRows):
    """Rows in files, one file after the other; places count through all of them."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.origin = name_of(self.files)

    def key(self) -> list[Any]:
        """The files' names, sizes and times."""
        return _stamps(self.files)

    @cached_property
    def _starts(self) -> list[int]:
        """The first place of each file."""
        return list(accumulate((self._size(file) for file in self.files[:-1]), initial=0))

    @abstractmethod
    def _size(self, file: Path) -> int:
        """How many places a file has."""

    @abstractmethod
    def _read(self, file: Path, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Rows of one file, by places that count from its beginning."""

    def read(self, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The cells of some rows, by places in order."""
        first = 0
        while first < len(places):
            number = bisect_right(self._starts, places[first]) - 1
            start = self._starts[number]
            stop = self._starts[number + 1] if number + 1 < len(self.files) else None
            last = len(places) if stop is None else _below(places, stop, first)
            yield from self._read(self.files[number], [place - start for place in places[first:last]])
            first = last


class JsonLines(_FileRows):
    """JSON lines; a place is a byte.

    Args:
        files: One after the other.
    """

    def scan(self) -> Iterator[StoredRow]:
        """All rows in the source's order."""
        for file, start in zip(self.files, self._starts, strict=True):
            with _reading(file), file.open("rb") as stream:
                place = 0
                for number, line in enumerate(stream, start=1):
                    name = f"{file}, line {number}"
                    text = _text(line, place, name)
                    if text.strip():
                        yield StoredRow(start + place, name, json_cells(text, name))
                    place += len(line)

    def _size(self, file: Path) -> int:
        with _reading(file):
            return file.stat().st_size

    def _read(self, file: Path, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        with _reading(file), file.open("rb") as stream:
            for place in places:
                stream.seek(place)
                name = f"{file}, at byte {place}"
                yield json_cells(_text(stream.readline(), place, name), name)


class ParquetRows(_FileRows):
    """Parquet; a place is a row's number.

    To come to a row, its row group is decoded from its beginning, a little at a time.

    Args:
        files: One after the other.
    """

    def scan(self) -> Iterator[StoredRow]:
        """All rows in the source's order."""
        number = 0
        for file, start in zip(self.files, self._starts, strict=True):
            with _parquet(file) as opened:
                for batch in opened.iter_batches(AT_A_TIME, use_threads=False):
                    for cells in batch.to_pylist():
                        yield StoredRow(number, f"{file}, row {number - start + 1}", cells)
                        number += 1

    def _size(self, file: Path) -> int:
        with _parquet(file) as opened:
            return int(opened.metadata.num_rows)

    def _read(self, file: Path, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        first, stop = 0, 0
        with _parquet(file) as opened:
            for group in range(opened.metadata.num_row_groups):
                start, stop = stop, stop + opened.metadata.row_group(group).num_rows
                last = _below(places, stop, first)
                if last > first:
                    yield from self._of_group(opened, group, [place - start for place in places[first:last]])
                first = last

    def _of_group(self, opened: ParquetFile, group: int, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        first, start = 0, 0
        for batch in opened.iter_batches(AT_A_TIME, row_groups=[group], use_threads=False):
            last = _below(places, start + len(batch), first)
            if last > first:
                yield from batch.take([place - start for place in places[first:last]]).to_pylist()
            if last == len(places):
                return
            first, start = last, start + len(batch)


class ArrowRows(StoredRows):
    """Rows that `datasets` has on the disk; a place is a row's number.

    Args:
        dataset: One split.
        origin: What to call it.
    """

    def __init__(self, dataset: ArrowDataset, origin: str) -> None:
        self.dataset = dataset
        self.origin = origin

    def key(self) -> list[Any]:
        """The files' names, sizes and times."""
        files = [Path(cached["filename"]) for cached in self.dataset.cache_files]
        return [len(self.dataset), str(self.dataset.features), _stamps(files)]

    def scan(self) -> Iterator[StoredRow]:
        """All rows in the source's order."""
        for start in range(0, len(self.dataset), AT_A_TIME):
            numbers = range(start, min(start + AT_A_TIME, len(self.dataset)))
            for number, cells in zip(numbers, self.read(numbers), strict=True):
                yield StoredRow(number, f"{self.origin}, row {number + 1}", cells)

    def read(self, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The cells of some rows, by places in order."""
        yield from self.dataset.select(places).to_list()


def _stamps(files: Sequence[Path]) -> list[Any]:
    stamps = []
    for file in files:
        with _reading(file):
            status = file.stat()
        stamps.append([str(file.resolve()), status.st_size, status.st_mtime_ns])
    return stamps


def _below(places: Sequence[int], stop: int, first: int) -> int:
    """How many places, which are in order, are below one; all before `first` are."""
    last = first
    while last < len(places) and places[last] < stop:
        last += 1
    return last


def _text(line: bytes, place: int, name: str) -> str:
    try:
        return line.decode("utf-8" if place else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParleyError(f"{name} is not UTF-8; save the file as UTF-8.") from error


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ParleyError(f"{file} cannot be read ({error.strerror or error}); check its permissions.") from error


@contextmanager
def _parquet(file: Path) -> Iterator[ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without pre_buffer=False all that was read stays in memory until the file is closed.
        with pq.ParquetFile(file, buffer_size=BYTES_AT_A_TIME, pre_buffer=False) as opened:
            yield opened
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ParleyError(f"{file} cannot be read as Parquet ({reason}); write it again.") from error
