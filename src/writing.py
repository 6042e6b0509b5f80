"""Files written whole or not at all; what the disk refuses is one line that names the file."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from src.errors import ParleyError

ADVICE = "make room there, or name another place"


@contextmanager
def writing(path: str | Path, advice: str = ADVICE) -> Iterator[None]:
    """Turn what the system refuses, whichever library was told, into one line.

    Args:
        path: The file or directory that is written.
        advice: What to do about it.

    Raises:
        ParleyError: In place of an error of the system's.
    """
    try:
        yield
    except ParleyError:
        raise
    except Exception as error:
        reason = system_reason(error)
        if reason is None:
            raise
        raise ParleyError(f"{path} cannot be written ({reason}); {advice}.") from error


def system_reason(error: BaseException) -> str | None:
    """What the system said, where that is behind an error: torch hides it behind a complaint of its own.

    Libraries written in Rust (safetensors, tokenizers) have errors of their own that end in the system's number.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and (cause.strerror or str(cause)):
            return str(cause.strerror or cause)
        if found := re.search(r"\(os error (\d+)\)", str(cause)):
            return os.strerror(int(found[1]))
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def whole_file(path: str | Path, mode: str = "w", advice: str = ADVICE, *, parents: bool = True) -> Iterator[IO[Any]]:
    """A file that takes the place of `path` when the block ends well; what was there stays otherwise.

    It is written under another name in the same directory, synced and renamed, so that neither a kill nor a full disk
    leaves half of it. What is no plain file, such as a pipe, is written as it is.

    Args:
        path: The file to be.
        mode: `w` for UTF-8 text with the line ends as they are given, `wb` for bytes.
        advice: What to do when it cannot be written.
        parents: Make the directory where there is none.

    Raises:
        ParleyError: The system refuses it; the line names the file.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    options: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with writing(path, advice):
        if parents:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            with target.open(mode, **options) as stream:
                yield stream
            return
        temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.tmp")
        try:
            with temporary.open(mode, **options) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if target.exists():
                shutil.copymode(target, temporary)
            temporary.replace(target)
            sync_directory(target.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def as_text(cell: str) -> str:
    """A cell of a CSV file that a spreadsheet takes for text, with an apostrophe before what it would compute."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


@contextmanager
def adding_to(path: str | Path, advice: str = ADVICE) -> Iterator[None]:
    """Leave a file as long as it was where what the block adds to it does not go in as a whole.

    Args:
        path: The file; it need not be there.
        advice: What to do when it cannot be written.

    Raises:
        ParleyError: The system refuses it; the line names the file.
    """
    file = Path(path)
    size = file.stat().st_size if file.is_file() else None
    try:
        with writing(path, advice):
            yield
    except BaseException:
        with suppress(OSError):
            if size is None:
                file.unlink()
            else:
                os.truncate(file, size)
        raise


def sync_directory(directory: Path) -> None:
    """Have the names of a directory's files on the disk, too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
