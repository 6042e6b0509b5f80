"""Reads texts for training a tokenizer, from plain text, tables or directories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from src.errors import ParleyError
from src.files import ROW_SUFFIXES, read_rows, read_text

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")


def read_corpus(paths: Iterable[str | Path]) -> Iterator[str]:
    """Every text in the given files; for tables, every cell that is text.

    Args:
        paths: Files, or directories whose files with one of `SUFFIXES` are read in the order of their names.

    Raises:
        ParleyError: When a path is not there, a line is malformed, or bytes are not UTF-8.
    """
    for path in map(Path, paths):
        for file in _files(path):
            yield from _read(file)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ParleyError(f"there is no corpus file {path}; give text, JSONL or CSV files, or a directory of them.")
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
    if not files:
        raise ParleyError(f"the directory {path} has no {', '.join(SUFFIXES)} file in it.")
    return files


def _read(path: Path) -> Iterator[str]:
    if path.suffix.lower() not in ROW_SUFFIXES:
        yield from read_text(path).splitlines()
        return
    is_typed = path.suffix.lower() not in (".csv", ".tsv")
    for row in read_rows(path):
        yield from (text for text in _strings(row.cells) if is_typed or not _is_number(text))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
