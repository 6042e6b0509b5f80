"""What a run left in its directory: settings, curves, last figures, answers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import ParleyError
from src.files import read_rows
from src.yaml_files import read_yaml

Curve = list[tuple[int, float]]
X_AXES = ("epoch", "step")


@dataclass(frozen=True)
class Answer:
    """What a run's model said to a prompt.

    Attributes:
        prompt: What it was asked.
        references: Right answers, where there are some.
        text: What it said.
    """

    prompt: str
    references: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Change:
    """What training made of an answer.

    Attributes:
        prompt: What was asked.
        before: The reference's answer.
        after: The policy's.
        reward: How much more the reward gives for it; None where there was no reward.
    """

    prompt: str
    before: str
    after: str
    reward: float | None


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        name: What the user called it.
        settings: Its configuration, flattened: `model.init_args.lora.r` to a value.
        curves: Metric to (step, value), in the order of steps.
        answers: Of the last validation or of the test, in the data's order.
        changes: The reference's answers and the policy's, the greatest rise in reward first.
    """

    name: str
    settings: dict[str, Any]
    curves: dict[str, Curve]
    answers: tuple[Answer, ...]
    changes: tuple[Change, ...]

    @property
    def figures(self) -> dict[str, float]:
        """The last value of every metric."""
        return {name: curve[-1][1] for name, curve in self.curves.items()}


def read_run(directory: Path) -> Run:
    """Read a run's directory.

    Args:
        directory: What `fit`, `validate` or `test` wrote, such as `runs/version_0`.

    Raises:
        ParleyError: It is none, or one of its files is malformed.
    """
    metrics = directory / "metrics.csv"
    if not metrics.is_file():
        if not directory.is_dir():
            raise ParleyError(f"there is no run {directory}; give a run's directory, such as runs/version_0.")
        inside = sorted(str(file.parent) for file in directory.glob("*/metrics.csv"))
        hint = f"give one of its runs: {', '.join(inside[:5])}" if inside else "give a run's directory"
        raise ParleyError(f"{directory} is no run, for it has no metrics.csv; {hint}.")
    return Run(
        name=str(directory),
        settings=_settings(directory / "config.yaml"),
        curves=_curves(metrics),
        answers=tuple(_answers(directory)),
        changes=tuple(_changes(directory)),
    )


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, with what each has; None where it has no such setting."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    tree = read_yaml(file)
    if not isinstance(tree, Mapping):
        raise ParleyError(f"{file} holds {type(tree).__name__}, not settings; restore it, or remove it.")
    return dict(_flat(tree))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _curves(file: Path) -> dict[str, Curve]:
    """The finite values of every column; a step that was measured twice keeps its last value."""
    points: dict[str, dict[int, float]] = {}
    for row in read_rows(file):
        for name, cell in row.cells.items():
            if name in X_AXES or not cell:
                continue
            try:
                step, value = int(row.cells["step"]), float(cell)
            except (KeyError, TypeError, ValueError) as error:
                raise ParleyError(f"{file}, {row.place}: {name} is no figure with a step; mend the file.") from error
            if math.isfinite(value):
                points.setdefault(name, {})[step] = value
    return {name: sorted(values.items()) for name, values in points.items()}


def _answers(directory: Path) -> Iterator[Answer]:
    files = [*sorted((directory / "samples").glob("*.jsonl")), *directory.glob("predictions.csv")]
    for place, row in _rows(files, ("prompt", "prediction")):
        given = row.get("references") or [row[name] for name in row if re.fullmatch(r"reference\d+", name)]
        texts = [row["prompt"], row["prediction"], *given] if isinstance(given, list) else [given]
        if not isinstance(given, list) or not all(isinstance(text, str) for text in texts):
            raise ParleyError(f"{place}: prompt, references and prediction are not all texts; restore the file.")
        yield Answer(row["prompt"], tuple(filter(None, given)), row["prediction"])


def _changes(directory: Path) -> Iterator[Change]:
    files = [*sorted((directory / "before_after").glob("*.csv")), *directory.glob("before_after.csv")]
    for place, row in _rows(files, ("query", "response_before", "response_after")):
        try:
            rise = float(row["reward_diff"]) if "reward_diff" in row else None
        except ValueError as error:
            raise ParleyError(f"{place}: reward_diff is {row['reward_diff']!r}, no number; mend the file.") from error
        yield Change(row["query"], row["response_before"], row["response_after"], rise)


def _rows(files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of the last of some files, which must have these columns, each with its place."""
    for row in read_rows(files[-1]) if files else ():
        if lacking := [name for name in columns if name not in row.cells]:
            raise ParleyError(f"{files[-1]}, {row.place}: there is no {lacking[0]}; restore the file, or remove it.")
        yield f"{files[-1]}, {row.place}", row.cells
