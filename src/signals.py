"""SIGINT and SIGTERM outside of training: print one line and exit with status 128 plus the signal's number.

Nothing heavy is imported here, so that the handlers are installed at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

PARENT_LOOKED_AT = 0.5  # seconds between two checks that the parent process is alive
FIRST_PROCESS = "PARLEY_FIRST_PROCESS"  # environment variable that gives the processes started by rank 0 its process id
TORCHRUN = "TORCHELASTIC_RUN_ID"  # in the environment of those that torchrun starts


class Interruption:
    """Signal handler for SIGINT and SIGTERM while a command runs.

    Args:
        command: Its name, for the message.
        at_once: Exit within the handler, because a library may catch or replace an exception; otherwise raise
            `KeyboardInterrupt`, so that unfinished work is cleaned up.

    Attributes:
        number: The signal received; 0 before there is one.
        command: As given.
    """

    def __init__(self, command: str, *, at_once: bool) -> None:
        self.number = 0
        self.command = command
        self._at_once = at_once
        self._process = os.getpid()

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if os.getpid() != self._process or is_started_by_ddp():
            return  # a worker forked a moment ago, or a DDP process other than rank 0: it ends with its parent
        self.number = number
        if not self._at_once:
            raise KeyboardInterrupt
        self.leave()

    def leave(self) -> NoReturn:
        """Print the message and exit by `os._exit`: Python's own exit kills itself where an import was interrupted."""
        sys.stdout.flush()
        line = f"parley {self.command}: stopped by {signal.Signals(self.number).name}.\n"
        os.write(2, line.encode())
        os._exit(128 + self.number)


@contextmanager
def interruption(command: str, *, at_once: bool) -> Iterator[Interruption]:
    """Install the handler within the block, and the previous handlers again after it."""
    outer = signal.getsignal(signal.SIGINT)  # the demo's, where it runs this command
    handler = Interruption(outer.command if isinstance(outer, Interruption) else command, at_once=at_once)
    if threading.current_thread() is not threading.main_thread():
        yield handler
        return
    numbers = (signal.SIGINT, signal.SIGTERM) if at_once else (signal.SIGINT,)
    before = {number: signal.signal(number, handler) for number in numbers}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # blocked by `signals_held` in processes that DDP starts
    try:
        yield handler
    finally:
        for number, previous in before.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)


@contextmanager
def signals_held() -> Iterator[None]:
    """Block SIGINT and SIGTERM, also in processes started within, until `interruption` unblocks them.

    A signal that arrives while Python itself starts kills the process; DDP then kills the other processes before they
    have printed their message.
    """
    os.environ[FIRST_PROCESS] = str(os.getpid())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """In a process that DDP's first one or torchrun has started: end when that does, however that came about."""
    if not is_started_by_ddp() and TORCHRUN not in os.environ:
        return
    parent = int(os.environ.get(FIRST_PROCESS, os.getppid()))  # getppid is wrong once the parent has ended

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_LOOKED_AT)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def give_way_to_parent() -> None:
    """In a process that DDP has started, after an error: exit silently if rank 0 has ended, which is the cause then."""
    if is_started_by_ddp():
        time.sleep(2 * PARENT_LOOKED_AT)  # time for the thread of `end_with_parent` to end this process


def is_started_by_ddp() -> bool:
    """Whether another process of the same run has started this one, rather than a person, torchrun or SLURM."""
    return FIRST_PROCESS in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"
