"""Reads the rows of a run from W&B's own files, as far as they have reached the disk.

W&B keeps a run's rows in memory and writes them in blocks of 32 KiB, so that a killed process leaves the beginning of
what it had logged, often none of it. W&B has no public reader. The format is LevelDB's log of W&B's protocol buffers;
it is known in this file only.
"""

from __future__ import annotations

import glob
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768  # bytes; a record may continue in the next block
PREAMBLE = 7  # bytes before the first block's records
HEADER = struct.Struct("<IHB")  # checksum, length, which piece of a record it is
WHOLE, FIRST, MIDDLE, LAST = range(1, 5)


def files_of(directory: Path, run_id: str) -> list[Path]:
    """The files of all processes that took part in a run.

    Args:
        directory: W&B's directory, with a subdirectory for each of these processes.
        run_id: The run's id.
    """
    name = glob.escape(run_id)
    return list(directory.glob(f"*run-*-{name}/run-{name}.wandb"))


def rows_on_disk(directory: Path, run_id: str) -> list[dict[str, Any]]:
    """Every row of a run, in the order of W&B's own `_step`; the arguments are those of `files_of`."""
    rows = [row for file in files_of(directory, run_id) for row in rows_of(file)]
    return sorted(rows, key=lambda row: row["_step"])


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file, up to the first incomplete record; tables and other nested values are dictionaries."""
    for record in records_of(file):
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                *parents, name = item.nested_key or [item.key]
                place = row
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[name] = json.loads(item.value_json)
            yield row


def records_of(file: Path) -> Iterator[Any]:
    """W&B's records, up to the first incomplete one."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for _, record in _framed(file):
        yield Record.FromString(record)


def trim(file: Path) -> None:
    """Cut off an incomplete record at the end of a file; delete a file that has no complete record.

    `wandb sync` would stop at it, and upload none of the run's later files.
    """
    end = max((end for end, _ in _framed(file)), default=0)
    if not end:
        file.unlink()
    elif end < file.stat().st_size:
        os.truncate(file, end)


def _framed(file: Path) -> Iterator[tuple[int, bytes]]:
    """For each complete record, its end position in the file and its bytes."""
    data = file.read_bytes()
    position, pieces = PREAMBLE, b""
    while position + HEADER.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER.size:  # padding
            position += left
            continue
        checksum, length, kind = HEADER.unpack_from(data, position)
        piece = data[position + HEADER.size : position + HEADER.size + length]
        if len(piece) < length or zlib.crc32(bytes([kind]) + piece) != checksum:
            return
        position += HEADER.size + length
        pieces = piece if kind in (WHOLE, FIRST) else pieces + piece
        if kind in (WHOLE, LAST):
            yield position, pieces
