"""Texts to train a tokenizer on: plain text, JSON lines, CSV, or a directory of them."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from src.errors import ParleyError

SUFFIXES = (".txt", ".jsonl", ".csv")


def read_corpus(paths: Iterable[str | Path]) -> Iterator[str]:
    """Every text in the given files; of JSON lines and CSV, every cell that is text.

    Args:
        paths: Files, or directories whose .txt, .jsonl and .csv files are read in the order of their names.

    Raises:
        ParleyError: When a path is not there, a line is malformed, or bytes are not UTF-8.
    """
    for path in map(Path, paths):
        for file in _files(path):
            try:
                yield from _read(file)
            except UnicodeDecodeError as error:
                raise ParleyError(f"{file} is not UTF-8 (byte {error.start}); convert it first.") from error
            except (OSError, csv.Error) as error:
                raise ParleyError(f"{file} cannot be read: {error}") from error


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
    if path.suffix == ".csv":
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        with path.open(encoding="utf-8-sig", newline="") as lines:
            for row in csv.DictReader(lines):
                yield from (cell for cell in row.values() if isinstance(cell, str) and not _is_number(cell))
        return
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if path.suffix != ".jsonl":
                yield line.rstrip("\n")
            elif line.strip():
                try:
                    yield from _strings(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ParleyError(f"{path} line {number} is not JSON: {error.msg}.") from error


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
