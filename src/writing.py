"""Atomic writing of files; an error of the operating system becomes one line that names the file."""

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
    """Turn an error of the operating system, whichever library raised it, into a one-line ParleyError.

    Args:
        path: The file or directory that is written.
        advice: What to do about it.

    Raises:
        ParleyError: The operating system refused something in the block; other errors pass unchanged.
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
    """The operating system's message behind an exception, or None: torch wraps it in an exception of its own.

    Exceptions of libraries written in Rust (safetensors, tokenizers) end in the operating system's error number.
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
    """Open a file that replaces `path` when the block succeeds; otherwise what was there stays.

    It is written under another name in the same directory, synced and renamed, so that neither a kill nor a full disk
    leaves half of it. Anything but a regular file, such as a pipe, is written directly.

    Args:
        path: The file to write.
        mode: `w` for UTF-8 text with the line ends unchanged, `wb` for bytes.
        advice: What to do when it cannot be written.
        parents: Make missing parent directories.

    Raises:
        ParleyError: The system refuses it; the line names the file.
    """
    target = Path(os.path.realpath(path))  # a symbolic link stays one
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
    """A CSV cell, with an apostrophe in front where a spreadsheet would take it for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


@contextmanager
def adding_to(path: str | Path, advice: str = ADVICE) -> Iterator[None]:
    """Cut a file back to its previous length if the block, which appends to it, fails.

    Args:
        path: The file; it need not exist.
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
    """Flush a directory's entries (new and renamed files) to disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
