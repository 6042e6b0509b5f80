"""What came of benchmarks on a device, in one file that every part adds to, and as tables for a page."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from src.errors import ParleyError
from src.files import read_text
from src.writing import whole_file

FOLDER = Path(__file__).resolve().parent / "results"
LIBRARIES = ("torch", "transformers", "trl", "lightning")


@dataclass(frozen=True)
class Outcome:
    """What came of one command.

    Attributes:
        command: As it was typed, without what only says where the table goes.
        date: Of its end, in ISO 8601.
        seconds: From its start to its end.
        title: What was measured at which sizes.
        rows: Of the table: column to figure or text.
        left_out: Methods that could not run here, each with the reason in a line.
        failed: Why there is no table; empty where there is one.
        versions: Of Python and of the libraries.
    """

    command: str
    date: str
    seconds: float
    title: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """Of Python and of those of `LIBRARIES` that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def add(file: Path, device: str, outcome: Outcome) -> None:
    """Put an outcome into a file, in the place of an earlier one of the same command.

    Parts that end at the same time wait for each other, and a kill leaves the file as it was.

    Args:
        file: JSON; made where it is not there.
        device: The device's own name.
        outcome: What came of the command.

    Raises:
        ParleyError: The file holds figures of another device, or something else.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file.parent):
        outcomes: dict[str, Outcome] = {}
        if file.exists():
            known, earlier = read(file)
            if known != device:
                raise ParleyError(f"{file} has figures of {known}, not of {device}; give another file to --results.")
            outcomes = {each.command: each for each in earlier}
        outcomes[outcome.command] = outcome
        with whole_file(file) as stream:
            held = {"device": device, "outcomes": [asdict(outcomes[command]) for command in sorted(outcomes)]}
            json.dump(held, stream, indent=1, ensure_ascii=False)
            stream.write("\n")


def read(file: Path) -> tuple[str, list[Outcome]]:
    """A file's device, and what came of commands on it.

    Raises:
        ParleyError: It is no such file.
    """
    if not file.is_file():
        raise ParleyError(f"there is no file {file}; `python -m benchmarks --device cuda` writes one.")
    try:
        held = json.loads(read_text(file))
        return str(held["device"]), [Outcome(**each) for each in held["outcomes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ParleyError(f"{file} is no file of benchmarks' results ({error}); move it away.") from error


def as_markdown(device: str, outcomes: Sequence[Outcome]) -> str:
    """Every outcome with its command, date and versions above its table."""
    parts = [f"## {device}"]
    for each in outcomes:
        name = each.command.split()[3]  # after `python -m benchmarks`
        parts.append(f"### {name}: {each.title}" if each.title else f"### {name}")
        libraries = "".join(f", {name} {version}" for name, version in each.versions.items())
        parts.append(f"`{each.command}`, {each.date}, {each.seconds:.0f} s{libraries}")
        if each.failed:
            parts.append(f"No table: {each.failed}.")
        elif each.rows:
            parts.append(_table(each.rows))
        parts += [f"Left out: {reason}" for reason in each.left_out]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that would, until the end of the block."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
