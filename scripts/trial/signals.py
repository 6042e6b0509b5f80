"""Signals to real processes: one line, the right status, no traceback, and nothing left alive.

    python -m scripts.trial signals
    python -m scripts.trial signals --only ddp    # the cases whose name begins so

A process is told to stop at a moment that is seen from outside: what it has said, how many processes it has, what it
has written.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from scripts.trial import Outcome
from scripts.trial.inputs.workshop import ROOT, Workshop
from scripts.trial.tools.part import collect, options_of, workplace

PATIENCE = 900.0  # seconds until a moment must have come, or an end
GRACE = 60.0  # seconds in which every process must be gone after the first one is
Moment = Callable[["Started"], bool]


@dataclass(frozen=True)
class Case:
    """A command, and when it is told what.

    Attributes:
        name: What is tried.
        words: What follows `parley`.
        moment: When.
        number: The signal.
        group: Whether the whole group gets it, as from a terminal; the first process alone otherwise.
        trains: Whether a checkpoint must be written, and be whole.
        said: What the last line must say.
    """

    name: str
    words: tuple[str, ...]
    moment: Moment
    number: signal.Signals
    group: bool = True
    trains: bool = False
    said: str = "stopped by"


class Started:
    """The command in a process group of its own."""

    def __init__(self, words: Sequence[str], directory: Path) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self._log = directory / "said"
        with self._log.open("wb") as stream:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "src", *words],
                cwd=directory,
                stdin=subprocess.DEVNULL if words[0] != "chat" else subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def others(self) -> list[psutil.Process]:
        """The living processes of its group, but for the first."""
        found = []
        for process in psutil.process_iter():
            try:
                is_one = os.getpgid(process.pid) == self.popen.pid != process.pid
                if is_one and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, ProcessLookupError):
                continue
        return found

    def end(self) -> None:
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.popen.wait()


def once_loaded(library: str) -> Moment:
    """Once the process has mapped a file whose name holds this: in the midst of imports."""
    return lambda started: library in _mapped(started.popen.pid)


def _mapped(pid: int) -> str:
    try:
        return " ".join(mapped.path for mapped in psutil.Process(pid).memory_maps())
    except psutil.Error:  # it has ended
        return ""


def once_said(text: str) -> Moment:
    """Once the process has said this."""
    return lambda started: text in started.said


def with_processes(count: int) -> Moment:
    """Once so many others are there, and have had a moment to become what they are."""
    return lambda started: len(started.others()) >= count and after_a_while(started)


def after_a_while(started: Started) -> bool:
    time.sleep(0.3)
    return started.popen.poll() is None


def once_it_has(pattern: str) -> Moment:
    """Once such a file is there."""
    return lambda started: any(started.directory.glob(pattern))


IMPORTED = ("libtorch", "_multiarray_umath")
LOGGED = "runs/version_*/metrics.csv"
LONG = {
    "trainer.max_epochs": "500",
    "trainer.limit_train_batches": "1.0",
    "trainer.log_every_n_steps": "1",
    "trainer.logger": "RunLogger",
    "trainer.logger.save_dir": "runs",
    "trainer.logger.name": "",
    "trainer.logger.flush_logs_every_n_steps": "1",
}
WORKERS = {"data.init_args.num_workers": "2"}
DDP = {"trainer.strategy": "ddp", "trainer.devices": "2"}
SANITY = {"trainer.num_sanity_val_steps": "-1", "data.init_args.validation_split": "validation"}


def cases(workshop: Workshop) -> list[Case]:
    """All of them."""
    stop, term = signal.SIGINT, signal.SIGTERM
    t5 = str(workshop.base("t5"))
    fit = lambda *more: workshop.words("seq2seq", LONG | {k: v for one in more for k, v in one.items()})  # noqa: E731
    slow = {"model.init_args.generation.max_new_tokens": "400", "model.init_args.generation.min_new_tokens": "400"}
    long = ("--min-new-tokens", "3000", "--max-new-tokens", "3000", "--num-beams", "4")
    test = workshop.words("seq2seq", SANITY | {"data.init_args.test_split": "test"} | slow, command="test")
    set_up, sanity = once_said("GPU available"), once_said("train:")
    return [
        *(Case(f"fit, imports {library}", fit(), once_loaded(library), stop) for library in IMPORTED),
        Case("fit, set-up", fit(), set_up, stop),
        Case("fit, set-up, SIGTERM", fit(), set_up, term),
        Case("fit, sanity check", fit(SANITY, slow), sanity, stop),
        Case("fit, sanity check, SIGTERM", fit(SANITY, slow), sanity, term),
        Case("fit, training", fit(), once_it_has(LOGGED), stop, trains=True),
        Case("fit, training, SIGTERM", fit(), once_it_has(LOGGED), term, trains=True),
        *(
            Case(f"fit, workers, {number.name} to {whom}", fit(WORKERS), once_it_has(LOGGED), number, group, True)
            for number in (stop, term)
            for whom, group in (("the group", True), ("the first", False))
        ),
        Case("ddp, before training, SIGTERM to the first", fit(DDP), with_processes(1), term, group=False),
        Case("ddp, before training, SIGINT", fit(DDP), with_processes(1), stop),
        Case("ddp, sanity check, SIGTERM to the first", fit(DDP, SANITY, slow), sanity, term, group=False),
        Case("ddp, training, workers, SIGTERM", fit(DDP, WORKERS), once_it_has(LOGGED), term, trains=True),
        Case("ddp, training, SIGTERM to the first", fit(DDP), once_it_has(LOGGED), term, group=False, trains=True),
        Case("test, imports", test, once_loaded("libtorch"), stop),
        Case("test, testing", test, once_said("test:"), stop),
        Case("test, testing, SIGTERM", test, once_said("test:"), term),
        Case("generate, imports", ("generate", t5, "--prompt", "x", *long), once_loaded("libtorch"), stop),
        Case("generate, generating", ("generate", t5, "--prompt", "x", *long), once_said("Decoding of"), stop),
        Case("chat, imports", ("chat", t5), once_loaded("libtorch"), stop),
        Case(
            "compare, imports",
            ("compare", t5, str(workshop.root / "adapter"), "--data", "x"),
            once_loaded("libtorch"),
            stop,
        ),
        Case(
            "export, imports",
            ("export", "--checkpoint", str(workshop.checkpoint()), "--output", "o"),
            once_loaded("libtorch"),
            stop,
        ),
        Case("init, imports", ("init", "--output", "made"), once_loaded("libtorch"), stop),
        Case("demo, imports", ("demo",), once_loaded("libtorch"), stop),
    ]


def try_case(case: Case, directory: Path) -> Outcome:
    """Start, wait for the moment, tell, and look at what comes of it."""
    started = Started(case.words, directory)
    try:
        return Outcome(case.name, not (wrong := _what_is_wrong(case, started)), wrong)
    finally:
        started.end()
        for process in started.others():
            process.kill()


def _what_is_wrong(case: Case, started: Started) -> str:
    if not _wait_for(lambda: case.moment(started) or started.popen.poll() is not None, PATIENCE):
        return "the moment did not come"
    if started.popen.poll() is not None:
        return f"it ended before, with status {started.popen.returncode}: {started.said[-300:]!r}"
    if case.group:
        os.killpg(started.popen.pid, case.number)
    else:
        started.popen.send_signal(case.number)
    if not _wait_for(lambda: started.popen.poll() is not None, PATIENCE):
        return "it goes on"
    gone = _wait_for(lambda: not started.others(), GRACE)
    lines = [line for line in started.said.splitlines() if line.strip()]
    mine = [line for line in lines if line.startswith(f"parley {case.words[0]}: ")]
    if started.popen.returncode != 128 + case.number:
        return f"status {started.popen.returncode}: {started.said[-300:]!r}"
    if "Traceback" in started.said or "Exception ignored" in started.said:
        return f"a traceback: {started.said[-300:]!r}"
    if len(mine) != 1 or case.said not in mine[0]:
        return f"{len(mine)} lines of its own: {mine}"
    if not gone:
        return f"{len(started.others())} processes are left alive"
    if case.trains and "go on with --ckpt_path" not in mine[0]:
        return f"there is no checkpoint to go on with: {mine[0]!r}"
    if case.trains and not (started.directory / mine[0].rpartition("--ckpt_path ")[2]).exists():
        return f"the checkpoint is not there: {mine[0]!r}"
    return ""


def _wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def main(words: Sequence[str]) -> list[Outcome]:
    given = options_of("signals", __doc__, only="cases").parse_args(words)
    with workplace() as place:
        workshop = Workshop(place)
        workshop.prepare()
        chosen = [case for case in cases(workshop) if case.name.startswith(tuple(given.only))]
        tried = (try_case(case, place / "tried" / str(number)) for number, case in enumerate(chosen))
        return collect(tried, verbose=given.verbose)
