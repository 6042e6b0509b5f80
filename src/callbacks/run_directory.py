"""A run's directory, and a lock that keeps other runs out of a directory."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Trainer

from src.errors import ParleyError
from src.writing import writing


def run_directory(trainer: Trainer) -> Path:
    """The run's own directory; every process must call this, since rank 0 broadcasts it.

    That is the logger's directory, or one named after the logger's run where several runs share a directory (W&B).
    """
    logger = trainer.logger
    if logger is None:
        return Path(trainer.default_root_dir)
    directory = getattr(logger, "log_dir", None)
    if directory is None:
        directory = Path(logger.save_dir or trainer.default_root_dir) / str(logger.version)
    return Path(trainer.strategy.broadcast(str(directory)))


class DirectoryLock:
    """An exclusive lock on a directory, held until it is released or this process ends.

    It is a POSIX record lock: the operating system releases it however the process ends, and child processes do not
    inherit it.

    Args:
        directory: The directory; made if it does not exist.

    Raises:
        ParleyError: Another process holds the lock, or the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        advice = "make room there, or give another --trainer.default_root_dir"
        with writing(directory, advice):
            directory.mkdir(parents=True, exist_ok=True)
        with writing(directory / ".lock", advice):
            self._file = (directory / ".lock").open("a+")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip()
            self._file.close()
            raise ParleyError(
                f"another run ({holder}) writes to {directory}; wait for it, or give this one another "
                "--trainer.default_root_dir."
            ) from error
        with suppress(OSError):  # the holder's name is optional, and the disk may be full
            os.truncate(self._file.fileno(), 0)
            os.write(self._file.fileno(), f"process {os.getpid()} on {os.uname().nodename}".encode())

    def release(self) -> None:
        """Release the lock."""
        self._file.close()
