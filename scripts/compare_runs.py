"""Whether two runs ended alike, to the bit."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from src.callbacks.storage import read_checkpoint

ON_THE_CLOCK = ("tokens_per_second", "time/")


def compare_runs(first: Path, second: Path) -> list[str]:
    """What differs between two runs that have ended.

    Compared are the last checkpoint (weights, optimiser, schedule, loops, random states, callbacks), the metric log
    and every table; settings and what depends on the clock are not.

    Args:
        first: A directory of runs, of which the newest counts.
        second: Another.

    Returns:
        A line for each difference.
    """
    checkpoints = [checkpoints_of(root)[-1] for root in (first, second)]
    ours, theirs = (_comparable(read_checkpoint(checkpoint)) for checkpoint in checkpoints)
    runs = [checkpoint.parents[1] for checkpoint in checkpoints]
    return [*differences(ours, theirs), *_compare_logs(*runs), *_compare_tables(*runs)]


def checkpoints_of(root: Path) -> list[Path]:
    """The checkpoints of all runs in a directory, oldest first."""
    return sorted(root.glob("version_*/checkpoints/step=*.ckpt"), key=lambda file: (version_of(file), file.name))


def version_of(file: Path) -> int:
    """The number of the run that a file belongs to."""
    return next(int(part.removeprefix("version_")) for part in file.parts if part.startswith("version_"))


def repeated_steps(checkpoint: Path) -> int:
    """Steps that the metric log has beyond a checkpoint: a run that goes on from there does them again."""
    state = read_checkpoint(checkpoint)["callbacks"]["ExactResume"]
    with (checkpoint.parents[1] / "metrics.csv").open() as stream:
        beyond = list(csv.DictReader(stream))[state["loggers"][0]["rows"] :]
    training = ("train/", "ppo/")
    steps = {row["step"] for row in beyond if any(row[name] for name in row if name and name.startswith(training))}
    return max(0, len(steps) - bool(state["pending"]))


def _comparable(checkpoint: dict[str, Any]) -> dict[str, Any]:
    state = checkpoint["callbacks"]["ExactResume"]
    del state["config"]
    for kind in ("pending", "metrics"):
        state[kind] = {name: value for name, value in state[kind].items() if not _is_on_the_clock(name)}
    return checkpoint


def _is_on_the_clock(name: str) -> bool:
    return any(part in name for part in ON_THE_CLOCK)


def differences(first: Any, second: Any, place: str = "checkpoint") -> Iterator[str]:
    """The places where two values are not the same to the bit."""
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            yield f"{place}: only one has {sorted(map(str, first.keys() ^ second.keys()))}"
        for key in first.keys() & second.keys():
            yield from differences(first[key], second[key], f"{place}.{key}")
    elif isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        for index, (mine, other) in enumerate(zip(first, second, strict=True)):
            yield from differences(mine, other, f"{place}[{index}]")
    elif isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        if first.dtype != second.dtype or not torch.equal(first, second):
            yield place
    elif not (first == second or (first != first and second != second)):
        yield f"{place}: {first!r} and {second!r}"


def _compare_logs(first: Path, second: Path) -> Iterator[str]:
    logs = [metric_log(run / "metrics.csv") for run in (first, second)]
    if logs[0] != logs[1]:
        pairs = enumerate(zip(*logs, strict=False))
        where = next((row for row, pair in pairs if pair[0] != pair[1]), min(map(len, logs)))
        yield f"metrics.csv: {len(logs[0])} and {len(logs[1])} rows, the first difference in row {where}"


def metric_log(file: Path) -> list[dict[str, str]]:
    """A metric log's rows without blanks and without what depends on the clock."""
    with file.open() as stream:
        rows = [
            {name: value for name, value in row.items() if value and not _is_on_the_clock(name)}
            for row in csv.DictReader(stream)
        ]
    return [row for row in rows if row.keys() - {"step", "epoch"}]


def _compare_tables(first: Path, second: Path) -> list[str]:
    tables = [
        {
            str(file.relative_to(run)): file.read_bytes()
            for pattern in ("samples/*", "before_after/*", "rollouts.jsonl")
            for file in run.glob(pattern)
        }
        for run in (first, second)
    ]
    return [name for name in sorted(tables[0].keys() | tables[1].keys()) if tables[0].get(name) != tables[1].get(name)]
