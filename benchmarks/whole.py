"""All benchmarks one after another, each in a process of its own, so that one that fails does not stop the others."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from benchmarks.device import device_named
from benchmarks.options import add_general, command_of, now, results_file
from benchmarks.results import Outcome, add, versions

LIMIT = {"cuda": 480.0}  # seconds of a benchmark; without a limit where none is named


def run_all(names: Sequence[str], argv: Sequence[str]) -> int:
    """Run them with their defaults.

    Args:
        names: Of the benchmarks.
        argv: Options of all of them.

    Returns:
        An exit status: 1 where one failed.

    Raises:
        ParleyError: There is no such device.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_general(parser)
    parser.add_argument(
        "--limit-seconds", type=float, help="end a benchmark that takes longer; 480 on a GPU, no limit on a CPU"
    )
    args = parser.parse_args(argv)
    device = device_named(args.device)
    limit = LIMIT.get(device.name) if args.limit_seconds is None else args.limit_seconds
    file = results_file(args.results, device)
    words = ["--device", device.name, *(["--json"] if args.json else [])]
    words += [] if file is None else ["--results", str(file)]
    failed: dict[str, str] = {}
    for name in names:
        print(f"== {name}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        reason = run_apart([sys.executable, "-m", "benchmarks", name, *words], device.environment, limit)
        if reason:
            failed[name] = reason
            if file is not None:
                seconds = round(time.perf_counter() - began, 1)
                add(
                    file,
                    device.title,
                    Outcome(command_of(name, words), now(), seconds, failed=reason, versions=versions()),
                )
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def run_apart(words: Sequence[str], environment: Mapping[str, str], limit: float | None) -> str:
    """Run a command, and end it with all that it has started where it takes too long.

    Args:
        words: The command.
        environment: Variables beside this process's own.
        limit: Seconds; None for no limit.

    Returns:
        Why it failed; empty where it did not.
    """
    process = subprocess.Popen(list(words), env=os.environ | dict(environment), start_new_session=True)
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"ended after {limit:g} seconds, which is the limit"
    finally:
        with suppress(ProcessLookupError):  # nobody of them is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"ended with status {status}" if status else ""
