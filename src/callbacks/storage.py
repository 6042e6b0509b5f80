"""Checkpoint files: written atomically, loaded without running code, and checked by a digest."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor

from src import __version__
from src.callbacks.digest import content_digest
from src.callbacks.shard_files import (
    heard_by_first,
    is_in_shards,
    read_shards,
    replace_checkpoint,
    temporary_name,
    why_unreadable,
    write_shards,
)
from src.contracts import CHECKPOINT_FORMAT, Share, Writing
from src.errors import ParleyError
from src.parallel.shards import Cut, copier, cut, map_leaves
from src.writing import system_reason, whole_file

DIGEST = "digest"
ADVICE = "earlier ones are intact: make room, then go on with --ckpt_path last"
DAMAGED = "it is damaged, or of another program"
_LARGE = ("state_dict", "optimizer_states")
_TO_BE_READ = {
    "parley.format": int,
    "parley.version": str,
    "parley.base.name": str,
    "parley.config": dict,
    "state_dict": dict,
}
_TO_GO_ON = {
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
    "loops.fit_loop": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}


class CheckpointRefusedError(ParleyError):
    """A file is not an intact checkpoint of Parley's.

    Args:
        path: The file.
        reason: What is wrong with it, as a clause.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path} cannot be read as a checkpoint: {reason}; give a whole .ckpt file of a run.")
        self.reason = reason


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, syncs and renames it; reads with `weights_only=True`.

    Each file carries a digest of its content, by which `read_checkpoint` detects damage even where torch can load it;
    a directory of shards has a list of checksums. A kill while writing leaves the previous checkpoint as it was.
    Asynchronous saves write a copy in memory, one at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._in_flight: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Writing | None = None) -> None:
        """Write a checkpoint, after waiting for one in flight.

        Args:
            checkpoint: Its content.
            path: Its final path.
            storage_options: Whether to write asynchronously or in shards; neither when left out.

        Raises:
            ParleyError: The disk is full or cannot be written; what was there before is intact. For an asynchronous
                save, the next call or `wait` raises it.
        """
        self.wait()
        how = storage_options or Writing()
        content: dict[str, Any] | Cut = {key: value for key, value in checkpoint.items() if key != DIGEST}
        if how.share is not None:
            with heard_by_first(Path(path), how.share):
                content = cut(checkpoint)
                content = _copy(content) if how.asynchronous else content
        elif how.asynchronous:
            content = _copy(content)
        if not how.asynchronous:
            _write(content, Path(path), how.share)
            return
        executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight = executor.submit(_write, content, Path(path), how.share)
        executor.shutdown(wait=False)

    def wait(self) -> None:
        """Block until the checkpoint in flight is on disk.

        Raises:
            ParleyError: It could not be written.
        """
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()

    def teardown(self) -> None:
        """Block until the checkpoint in flight is on disk."""
        self.wait()

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: Any = None
    ) -> Any:
        """Read a checkpoint; a file that would run code is refused whatever `weights_only` is."""
        return read_checkpoint(path, map_location=map_location)

    def load_mapped(self, path: str | Path) -> dict[str, Any]:
        """As `load_checkpoint`, but of one file weights and optimiser states stay on disk, in the system's cache."""
        if is_in_shards(Path(path)):
            return read_checkpoint(path)
        copy = copier()
        checkpoint = read_checkpoint(path, mmap=True)
        return {key: value if key in _LARGE else map_leaves(value, copy) for key, value in checkpoint.items()}


def _write(content: dict[str, Any] | Cut, path: Path, share: Share | None) -> None:
    if isinstance(content, Cut):
        assert share is not None
        write_shards(content, path, share, ADVICE)
        return
    if path.is_dir():  # a sharded checkpoint of that name
        temporary = temporary_name(path, str(os.getpid()))
        _write_file(content, temporary)
        replace_checkpoint(temporary, path, ADVICE)
        return
    _write_file(content, path)


def _write_file(content: dict[str, Any], path: Path) -> None:
    with whole_file(path, "wb", ADVICE) as stream:
        torch.save({**content, DIGEST: content_digest(content)}, stream)


def _copy(content: dict[str, Any] | Cut) -> dict[str, Any] | Cut:
    """A copy on the CPU, which training does not change."""
    copy = copier("cpu")
    if isinstance(content, Cut):
        return Cut(map_leaves(content.rest, copy), map_leaves(content.own, copy))
    copied: dict[str, Any] = map_leaves(content, copy)
    return copied


def read_checkpoint(path: str | Path, *, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint, checking that it is intact and without running code that may be in it.

    Files are always memory-mapped to be checked, since torch locates a tensor differently with and without `mmap`, and
    in a damaged file one of the two may be right.

    Args:
        path: The file, or the directory of its shards.
        map_location: The device of its tensors, as in `torch.load`.
        mmap: Leave tensors memory-mapped instead of copying them. For a sharded checkpoint the weights are joined in
            memory, and of other sharded tensors there are only dtype and shape.

    Raises:
        ParleyError: It does not exist, is not a file, is damaged, not one of Parley's, or has weights that are NaN.
    """
    in_shards = is_in_shards(Path(path))
    if reason := why_unreadable(Path(path)) if in_shards else _not_a_file(Path(path)):
        raise CheckpointRefusedError(path, reason)
    try:
        if in_shards:
            checkpoint, is_as_written = read_shards(Path(path), map_location, weights_alone=mmap), True
        else:
            checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
            digest = checkpoint.pop(DIGEST, None) if isinstance(checkpoint, dict) else None
            is_as_written = content_digest(checkpoint) == digest if digest is not None else _has_whole_records(path)
    except Exception as error:  # of any type: a flipped bit may fail anywhere in the reader
        raise CheckpointRefusedError(path, DAMAGED) from error
    if not isinstance(checkpoint, dict) or "parley" not in checkpoint:
        raise CheckpointRefusedError(path, "it was not written by Parley")
    if not is_as_written:
        raise CheckpointRefusedError(path, "it is damaged: it does not hold what was written")
    if reason := lacking(checkpoint, _TO_BE_READ) or _too_new(checkpoint) or _not_a_number(checkpoint["state_dict"]):
        raise CheckpointRefusedError(path, reason)
    if mmap or in_shards:
        return checkpoint
    copied: dict[str, Any] = map_leaves(checkpoint, copier())
    return copied


def is_checkpoint(path: Path) -> bool:
    """Whether a path means a checkpoint (a file or a directory of shards) rather than a model directory or hub name.

    Args:
        path: It need not exist or be intact; `read_checkpoint` checks that.
    """
    return path.is_file() or path.suffix == ".ckpt"


def _too_new(checkpoint: Mapping[str, Any]) -> str | None:
    written = checkpoint["parley"]
    if written["format"] <= CHECKPOINT_FORMAT:
        return None
    return f"it needs Parley {written['version']} or newer (this is {__version__})"


def _not_a_file(path: Path) -> str | None:
    """Why a path is not a readable file, or None; without opening it, since opening a pipe would block."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character
        if path.is_symlink():
            return "it is a link that leads nowhere"
        return _none_there(path) if isinstance(error, FileNotFoundError) else system_reason(error) or str(error)
    if stat.S_ISREG(mode):
        return None
    return "it is a directory" if stat.S_ISDIR(mode) else "it is no file but a pipe or a device"


def _none_there(path: Path) -> str:
    beside = sorted(path.parent.glob("*.ckpt")) if path.suffix == ".ckpt" else []
    return "there is no such file" + (f" (beside it is {beside[-1].name})" if beside else "")


def _has_whole_records(path: str | Path) -> bool:
    """Whether the zip archive's own checksums are right; older checkpoints have no digest."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def lacking(checkpoint: Mapping[str, Any], places: Mapping[str, type]) -> str | None:
    """The first required entry that a checkpoint lacks, as a clause; None if it has all.

    Args:
        checkpoint: Its content.
        places: The required keys, joined by dots, with the type of their values.
    """
    for place, kind in places.items():
        value: Any = checkpoint
        for key in place.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if not isinstance(value, kind):
            return f"it holds no {place}"
    return None


def lacking_to_go_on(checkpoint: Mapping[str, Any]) -> str | None:
    """The first entry that a checkpoint lacks for training to resume from it, as a clause; None if it has all."""
    if reason := lacking(checkpoint, _TO_GO_ON):
        return reason
    odd = [key for key, state in checkpoint["callbacks"].items() if not isinstance(state, dict)]
    return f"it holds no state of the callback {odd[0]!r}" if odd else None


def _not_a_number(state: Mapping[Any, Any]) -> str | None:
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            return f"it holds no weights under {name!r}"
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            return f"its weights are not finite: {name} holds {int(tensor.isnan().sum()):,} NaN"
    return None


def is_whole(path: str | Path) -> bool:
    """Whether a file is an intact checkpoint."""
    try:
        read_checkpoint(path, mmap=True)
    except ParleyError:
        return False
    return True


def newest_that_will_do(
    files: Iterable[Path], reject: Callable[[Path], str | None], warn: Callable[[str], None]
) -> Path | None:
    """The newest file that is not rejected; None if all are.

    Args:
        files: Candidates.
        reject: Returns why a file cannot be used, as a clause; None if it can.
        warn: Called with a message for every file that was passed over.
    """
    for file in sorted(files, key=_age, reverse=True):
        reason = reject(file)
        if reason is None:
            return file
        warn(f"Passed over {file}: {reason}.")
    return None


def _age(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:  # a broken link, or a file deleted meanwhile
        return 0
