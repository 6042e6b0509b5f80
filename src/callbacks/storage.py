"""Checkpoint files: written whole or not at all, read without running code, checked before they are trusted."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from src.errors import ParleyError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, syncs, renames; reads with `weights_only=True`.

    torch's format is a zip archive with a CRC-32 of every record, so each file carries its own checksums and a
    damaged one shows (`is_whole`). A kill while writing leaves the checkpoint before it as it was.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            ParleyError: The disk is full or cannot be written; what was there before is intact.
        """
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
            _sync_directory(target.parent)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                temporary.unlink()
            raise ParleyError(
                f"the checkpoint {target} could not be written ({_reason(error)}); earlier ones "
                "are intact: make room, then go on with --ckpt_path last."
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: Any = None
    ) -> Any:
        """Read a checkpoint; a file that would run code is refused whatever `weights_only` says."""
        return read_checkpoint(path, map_location=map_location)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """What the system said first: torch, closing its archive, hides that behind a complaint of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]


def is_whole(path: str | Path) -> bool:
    """Whether every record of a checkpoint file is there and matches its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    # RuntimeError: a flipped byte in a header can name a compression or an encryption that zipfile does not know.
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError):
        return False


def read_checkpoint(path: str | Path, *, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint without running any code that may be in it.

    Args:
        path: The file.
        map_location: Where its tensors go.
        mmap: Leave tensors on disk until they are looked at.

    Raises:
        ParleyError: It is not there, damaged, or not one of Parley's.
    """
    if not Path(path).is_file():
        raise ParleyError(f"there is no checkpoint {str(path)!r}; give a .ckpt file of a run.")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        raise ParleyError(
            f"{path} cannot be read as a checkpoint: it is damaged or of another program; try --ckpt_path last."
        ) from error
    if not isinstance(checkpoint, dict) or "parley" not in checkpoint:
        raise ParleyError(f"{path} was not written by Parley; give a .ckpt file of one of its runs.")
    return checkpoint


def newest_whole(
    files: Iterable[Path], reject: Callable[[Path], str | None], warn: Callable[[str], None]
) -> Path | None:
    """The newest checkpoint that is whole and not rejected.

    Args:
        files: Candidates.
        reject: Says why a whole file will not do; None when it will.
        warn: Told of every file that was passed over.
    """
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        reason = reject(file) if is_whole(file) else "it is truncated or corrupt"
        if reason is None:
            return file
        warn(f"Passed over {file}: {reason}.")
    return None
