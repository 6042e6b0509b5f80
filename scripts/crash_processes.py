"""Runs of the real command that are ended from outside."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

ROOT = Path(__file__).resolve().parents[1]
STOPPED = 128 + signal.SIGTERM  # the exit status of a run that has answered SIGTERM
PATIENCE = 600.0  # seconds
How = Literal["group", "alone", "term", "term-group"]


class Process(Protocol):
    """What a run must answer to, however it was started."""

    @property
    def pid(self) -> int | None: ...

    def status(self) -> int | None: ...


class Command:
    """`python -m src` in a process group of its own."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        with log.open("ab") as stream:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "src", *words],
                cwd=ROOT,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def status(self) -> int | None:
        return self._popen.poll()


class Fork:
    """The same command in a fork of a process that has imported the libraries."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["src.commands.trainer", "torch", "peft"])
        self._process = context.Process(target=_run_command, args=(list(words), str(log)))
        self._process.start()
        self.pid = self._process.pid

    def status(self) -> int | None:
        return self._process.exitcode


def _run_command(words: list[str], log: str) -> None:
    os.setsid()
    os.chdir(ROOT)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import wandb

    from src.cli import main

    status = main(words)
    if wandb.run is not None:  # a fork runs no exit handlers, and so not W&B's
        wandb.finish(exit_code=status)
    sys.exit(status)


def end(process: Process, how: How = "group") -> None:
    """End a run and wait until nothing of it is left.

    Args:
        process: The first of a process group.
        how: SIGKILL to all of it (`group`) or to its first process (`alone`), which leaves others a second; or SIGTERM
            to the first (`term`) or to all of it (`term-group`), which is answered in their own time.

    Raises:
        SystemExit: SIGTERM was not answered with its exit status.
    """
    assert process.pid is not None
    number = signal.SIGTERM if how.startswith("term") else signal.SIGKILL
    try:
        (os.killpg if how.endswith("group") else os.kill)(process.pid, number)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + PATIENCE
    while (status := process.status()) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    if number == signal.SIGTERM and status != STOPPED:
        raise SystemExit(f"SIGTERM was answered with status {status} instead of {STOPPED}")
    if how == "alone":
        time.sleep(1)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
