"""The command in forks of this process, which has imported the libraries: milliseconds to start instead of seconds."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

MEMORY = 16 * 2**30  # bytes of address space: what expands a billionfold must not take the machine with it


@dataclass(frozen=True)
class Answer:
    """What the command said.

    Attributes:
        status: Its exit status, or the negative number of a signal; None where it ran out of time.
        out: Standard output.
        err: Standard error.
    """

    status: int | None
    out: str
    err: str


def import_libraries() -> None:
    """Import what the forks are to find imported."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name in ("src.commands.trainer", "src.inference.decoding", "src.inference.examples", "src.reporting.page"):
        importlib.import_module(name)


def ask(
    words: Sequence[str],
    directory: Path,
    patience: float = 60.0,
    given: bytes = b"",
    until: Callable[[], bool] = lambda: False,
) -> Answer:
    """Run `parley` with some words.

    Args:
        words: What follows `parley`.
        directory: Where; the process starts there, and what it says is kept beside it.
        patience: Seconds until it and its group are killed.
        given: What it finds on standard input.
        until: Asked again and again; once it is so, they are killed as well.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory.with_name(f"{directory.name}.{name}") for name in ("in", "out", "err")]
    files[0].write_bytes(given)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _be_the_command(words, directory, files)
    status = _wait(pid, patience, until)
    return Answer(status, *(file.read_text(encoding="utf-8", errors="replace") for file in files[1:]))


def _be_the_command(words: Sequence[str], directory: Path, files: Sequence[Path]) -> None:
    status = 1
    gc.freeze()  # garbage of the process that forked may wait for threads of its own, which are not here
    torch.set_num_threads(1)  # nor are OpenMP's
    try:
        os.setsid()
        os.chdir(directory)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for number, file in enumerate(files):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(file, flags, 0o644), number)
        sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115
        sys.stderr = open(2, "w", errors="backslashreplace")  # noqa: SIM115  (as Python's own)
        logging.getLogger("src").handlers.clear()  # one that this process has writes to its own standard error
        sys.modules["__main__"].__spec__ = None  # DDP starts its other processes as this one was, by sys.argv then
        from src.cli import main

        status = main(list(words))
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _wait(pid: int, patience: float, until: Callable[[], bool]) -> int | None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and not until():
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None
