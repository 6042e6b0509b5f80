"""A sharded checkpoint: a directory with a file of shards per process and one file of the rest, written atomically.

Processes write in parallel without collective calls, so that a background thread may do it; each reports that it is
done by a small file of its checksums. Rank 0 waits for all of them, writes the list of files and renames the directory
to its final name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import torch

from src.contracts import Share
from src.errors import ParleyError
from src.parallel.shards import Cut, copier, join, map_leaves
from src.writing import ADVICE, sync_directory, system_reason, whole_file, writing

log = logging.getLogger(__name__)
LIST, REST = "files.json", "rest.pt"
BLOCK = 2**22  # bytes read at a time
PATIENCE = 1800.0  # seconds that rank 0 waits for another process's shards


def temporary_name(path: Path, token: str) -> Path:
    """The temporary path of a checkpoint while it is written.

    Args:
        path: Its final path.
        token: Identifies this save.
    """
    return path.with_name(f".{path.name}.{token}.tmp")


def _shard_name(rank: int) -> str:
    return f"shard-{rank:05d}"


@contextmanager
def heard_by_first(path: Path, share: Share) -> Iterator[None]:
    """Report an exception in the block to rank 0, which waits for this process's shards.

    Args:
        path: The checkpoint's final path.
        share: This process's part of the checkpoint.
    """
    try:
        yield
    except BaseException as error:
        said = str(error)
        if not isinstance(error, ParleyError):
            said = (
                f"{path} cannot be written: {type(error).__name__} in process {share.rank}, whose own message says "
                "more; earlier ones are intact, go on with --ckpt_path last."
            )
        file = temporary_name(path, share.token) / f"{_shard_name(share.rank)}.json"
        with suppress(Exception), whole_file(file) as stream:  # the first error is the one to report
            json.dump({"error": said}, stream)
        raise


def write_shards(parts: Cut, path: Path, share: Share, advice: str) -> None:
    """Write this process's shards; on rank 0, also wait for all others and rename the directory.

    Args:
        parts: The shards and the rest, as `cut` separated them.
        path: The checkpoint's final path.
        share: This process's part of the checkpoint.
        advice: What to do when it cannot be written.

    Raises:
        ParleyError: This process could not write; on rank 0, any process could not.
    """
    folder, name = temporary_name(path, share.token), _shard_name(share.rank)
    with heard_by_first(path, share):
        said = {f"{name}.pt": _write(folder / f"{name}.pt", parts.own, advice)}
        if share.rank == 0:
            said[REST] = _write(folder / REST, parts.rest, advice)
        with whole_file(folder / f"{name}.json", advice=advice) as stream:
            json.dump(said, stream)
    if share.rank == 0:
        try:
            with writing(path, advice):
                _finish(folder, path, share.processes, advice)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


class _Summing:
    """A write-only stream that computes the SHA-256 of what is written.

    Args:
        stream: The file that it writes to.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def write(self, piece: bytes) -> int:
        self.digest.update(piece)
        return self._stream.write(piece)

    def flush(self) -> None:
        self._stream.flush()


def _write(file: Path, content: Any, advice: str) -> str:
    with whole_file(file, "wb", advice) as stream:
        summing = _Summing(stream)
        torch.save(content, cast(IO[bytes], summing))
    return summing.digest.hexdigest()


def _finish(folder: Path, path: Path, processes: int, advice: str) -> None:
    files: dict[str, str] = {}
    for rank in range(processes):
        said = _await(folder / f"{_shard_name(rank)}.json")
        if "error" in said:
            raise ParleyError(said["error"])
        files |= said
    with whole_file(folder / LIST, advice=advice) as stream:
        json.dump({"files": files}, stream)
    for rank in range(processes):
        (folder / f"{_shard_name(rank)}.json").unlink()
    sync_directory(folder)
    replace_checkpoint(folder, path, advice)


def _await(file: Path) -> dict[str, str]:
    deadline = time.monotonic() + PATIENCE
    while not file.is_file():
        if time.monotonic() > deadline:
            raise ParleyError(f"no shards of another process in {file.parent} after {PATIENCE:.0f} s; is it shared?")
        time.sleep(0.005)
    said: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return said


def replace_checkpoint(temporary: Path, path: Path, advice: str = ADVICE) -> None:
    """Rename a checkpoint to its final path, replacing one that is there; `mend` repairs a kill in between.

    Args:
        temporary: Its temporary path.
        path: Its final path.
        advice: What to do when it cannot be renamed, for the message.

    Raises:
        ParleyError: The operating system refuses.
    """
    aside = _aside(path)
    with writing(path, advice):
        if path.exists() and (path.is_dir() or temporary.is_dir()):
            remove(aside)
            path.rename(aside)
        temporary.replace(path)
        sync_directory(path.parent)
    remove(aside)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.aside")


def mend(folder: Path) -> None:
    """Remove temporary files of killed runs, and restore a checkpoint that was set aside but not replaced."""
    for aside in folder.glob(".*.aside"):
        path = aside.with_name(aside.name[1:].removesuffix(".aside"))
        if path.exists():
            remove(aside)
        else:
            with writing(path):
                aside.rename(path)
    for half_written in folder.glob(".*.tmp"):
        remove(half_written)


def remove(path: Path) -> None:
    """Delete a checkpoint, file or directory; a directory is renamed first, so that no half of one is left.

    What cannot be deleted stays, with a warning: it only takes space.
    """
    try:
        if not path.is_dir() or path.is_symlink():
            path.unlink()
            return
        if not path.name.startswith("."):
            nameless = temporary_name(path, "removed")
            if nameless.exists():
                shutil.rmtree(nameless)
            path = path.rename(nameless)
        shutil.rmtree(path)
    except FileNotFoundError:
        pass  # it is deleted already
    except OSError as error:
        log.warning("%s cannot be removed (%s); remove it by hand.", path, system_reason(error))


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_in_shards(path: Path) -> bool:
    """Whether the path is the directory of a sharded checkpoint, complete or not."""
    return path.is_dir() and path.suffix == ".ckpt"


def why_unreadable(path: Path) -> str | None:
    """Why a directory is not an intact sharded checkpoint, as a clause; None if it is one."""
    try:
        files = json.loads((path / LIST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            if os.sep in name or not (path / name).is_file():
                return f"it lacks {name}"
            if checksum(path / name) != expected:
                return f"it is damaged: {name} does not hold what was written"
    except FileNotFoundError:
        return f"it is a directory without {LIST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return system_reason(error) or f"its {LIST} is damaged"
    return None


def read_shards(path: Path, map_location: Any, *, weights_alone: bool = False) -> dict[str, Any]:
    """Read a sharded checkpoint into memory, joined as if it had been one file.

    Args:
        path: A directory for which `why_unreadable` returns None.
        map_location: The device of its tensors, as in `torch.load`.
        weights_alone: Join only the weights (see `join`).

    Raises:
        ValueError: Its files do not make up a checkpoint.
    """
    files = json.loads((path / LIST).read_text(encoding="utf-8"))["files"]
    read = {
        name: torch.load(path / name, map_location=map_location, weights_only=True, mmap=True) for name in sorted(files)
    }
    rest = read.pop(REST)
    if weights_alone:
        return join(rest, list(read.values()), whole="state_dict")
    return join(map_leaves(rest, copier()), list(read.values()))
