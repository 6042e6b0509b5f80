"""The options that every benchmark has, and what becomes of its table."""

from __future__ import annotations

import argparse
import datetime
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.device import NAMES, Device, device_named
from benchmarks.results import FOLDER, Outcome, add, versions


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str], *, on_gpu: Mapping[str, Any] | None = None
) -> argparse.Namespace:
    """Parse a benchmark's options.

    Args:
        parser: With the benchmark's own options; their defaults are those of a CPU.
        argv: The words after the benchmark's name.
        on_gpu: Defaults that are others on a GPU, by destination.

    Returns:
        The options; `device` is a `Device`, and `began` and `command` are for `report`.

    Raises:
        ParleyError: There is no such device.
    """
    began = time.perf_counter()
    add_general(parser)
    first = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    first.add_argument("--device", default="cpu")
    name = first.parse_known_args([word for word in argv if word not in ("-h", "--help")])[0].device
    wanted = on_gpu if on_gpu and name == "cuda" else {}
    unknown = wanted.keys() - {action.dest for action in parser._actions}
    assert not unknown, unknown
    parser.set_defaults(**wanted)
    args = parser.parse_args(argv)
    args.device = device_named(args.device)
    args.began, args.command = began, command_of(parser.prog.split()[-1], argv)
    return args


def add_general(parser: argparse.ArgumentParser) -> None:
    """The device, and where the table goes."""
    parser.add_argument("--device", default="cpu", metavar="|".join(NAMES), help="what to measure on; cpu by default")
    parser.add_argument(
        "--results",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="FILE",
        help="add the table to this file, or to benchmarks/results/ and the device's name; on a GPU always",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def command_of(name: str, argv: Sequence[str]) -> str:
    """The command that was typed, without `--json` and `--results`."""
    words, rest = ["python", "-m", "benchmarks", name], list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--results":
            if rest and not rest[0].startswith("-"):
                rest.pop(0)
        elif word != "--json" and not word.startswith("--results="):
            words.append(word)
    return shlex.join(words)


def results_file(given: Path | None, device: Device) -> Path | None:
    """The file that results are added to; None for none.

    Args:
        given: What followed `--results`: nothing is an empty path; None where the option was left out.
        device: What is measured on.
    """
    if given is None and not device.on_gpu:
        return None
    return FOLDER / f"{device.slug}.json" if given in (None, Path()) else given


def report(
    args: argparse.Namespace, rows: Sequence[Mapping[str, Any]], *, title: str = "", left_out: Sequence[str] = ()
) -> None:
    """Print a benchmark's table, and add it to the device's file where that is wanted.

    Args:
        args: From `parse`.
        rows: The table.
        title: A line above it.
        left_out: Methods that could not run, each with the reason in a line.
    """
    from src.commands.output import show

    show(rows, title=title or None, as_json=args.json)
    file = results_file(args.results, args.device)
    if file is not None:
        seconds = time.perf_counter() - args.began
        outcome = Outcome(
            args.command, now(), round(seconds, 1), title, [dict(row) for row in rows], list(left_out),
            versions=versions(),
        )  # fmt: skip
        add(file, args.device.title, outcome)


def now() -> str:
    """The date and time, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
