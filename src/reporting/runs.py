"""Reads a run's directory: settings, logged metrics, answers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from src.errors import ParleyError
from src.files import read_rows
from src.yaml_files import read_yaml

Curve = list[tuple[int, float]]
X_AXES = ("epoch", "step")


@dataclass(frozen=True)
class Answer:
    """A model's answer to a prompt.

    Attributes:
        prompt: The prompt.
        references: The reference answers; may be empty.
        text: The model's answer.
    """

    prompt: str
    references: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt with a reward model's scores.

    Attributes:
        prompt: The prompt.
        chosen: The better answer.
        rejected: The other.
        chosen_reward: The reward of `chosen`.
        rejected_reward: The reward of `rejected`.
    """

    prompt: str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float


@dataclass(frozen=True)
class Change:
    """The answers to a prompt before and after training.

    Attributes:
        prompt: The prompt.
        before: The reference model's answer.
        after: The policy's answer.
        figures: Reward, if there is one, and metrics, by name, as pairs (before, after).
    """

    prompt: str
    before: str
    after: str
    figures: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """What a run's directory holds.

    Attributes:
        name: The directory, as the user gave it.
        settings: Its configuration, flattened to keys such as `model.init_args.lora.r`.
        curves: For each metric its (step, value) pairs, sorted by step.
        answers: The answers of the test, or of the last validation, in the data's order.
        pairs: The same for a reward model.
        changes: Answers before and after training, those with the greatest rise in reward first.
        parameters: The number of all and of trained parameters; None if the run did not train.
        environment: Versions of Python and the libraries, and the commit.
        checkpoint: The newest checkpoint in it; None if there is none.
    """

    name: str
    settings: dict[str, Any]
    curves: dict[str, Curve]
    answers: tuple[Answer, ...]
    pairs: tuple[Pair, ...]
    changes: tuple[Change, ...]
    parameters: tuple[int, int] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    checkpoint: str | None = None

    @property
    def steps(self) -> int:
        """How far it came: to its newest checkpoint, or to the last logged step where that is further."""
        named = re.fullmatch(r"step=(\d+)\.ckpt", Path(self.checkpoint or "").name)
        return max([int(named[1]) if named else 0, *(curve[-1][0] + 1 for curve in self.curves.values())])

    @property
    def figures(self) -> dict[str, float]:
        """The last value of every metric."""
        return {name: curve[-1][1] for name, curve in self.curves.items()}


def read_run(directory: Path) -> Run:
    """Read a run's directory.

    Args:
        directory: A directory that `fit`, `validate` or `test` wrote, such as `runs/version_0`.

    Raises:
        ParleyError: It is not a run's directory, or one of its files is malformed.
    """
    metrics = directory / "metrics.csv"
    if not metrics.is_file():
        if not directory.is_dir():
            raise ParleyError(f"there is no run {directory}; give a run's directory, such as runs/version_0.")
        inside = sorted(str(file.parent) for file in directory.glob("*/metrics.csv"))
        hint = f"give one of its runs: {', '.join(inside[:5])}" if inside else "give a run's directory"
        raise ParleyError(f"{directory} is no run, for it has no metrics.csv; {hint}.")
    settings, figures = _mapping(directory / "config.yaml"), _curves(metrics)
    record = _mapping(directory / "hparams.yaml")
    shown = list(_shown(directory))
    checkpoints = sorted((directory / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    return Run(
        name=str(directory),
        settings=dict(_flat(settings)),
        curves=figures,
        answers=tuple(row for row in shown if isinstance(row, Answer)),
        pairs=tuple(row for row in shown if isinstance(row, Pair)),
        changes=tuple(_changes(directory)),
        parameters=_parameters(record),
        environment=_environment(record),
        checkpoint=str(checkpoints[-1]) if checkpoints else None,
    )


def settings_of(directory: Path) -> dict[str, Any]:
    """A run's configuration, flattened; empty if it has none.

    Args:
        directory: The run's directory; other files than `config.yaml` are not needed.

    Raises:
        ParleyError: The file is malformed.
    """
    return dict(_flat(_mapping(directory / "config.yaml")))


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings that differ between runs, with each run's value; None for a run that lacks the setting."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def _mapping(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    tree = read_yaml(file)
    if not isinstance(tree, Mapping):
        raise ParleyError(f"{file} holds {type(tree).__name__}, not settings; restore it, or remove it.")
    return tree


def _parameters(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """The number of all and of trained parameters, as `ParameterSummary` logged them."""
    counts = record.get("parameters"), record.get("trainable_parameters")
    return (counts[0], counts[1]) if isinstance(counts[0], int) and isinstance(counts[1], int) else None


def _environment(record: Mapping[str, Any]) -> dict[str, str]:
    """Library versions and commit, as `RunRecord` logged them."""
    versions, git = record.get("environment"), record.get("git")
    found = {str(name): str(version) for name, version in versions.items()} if isinstance(versions, Mapping) else {}
    if isinstance(git, Mapping) and "commit" in git:
        found["commit"] = f"{git['commit']}{', with changes' if git.get('changed') else ''}"
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _curves(file: Path) -> dict[str, Curve]:
    """The finite values of every column by step; the last value of a step counts."""
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


def _shown(directory: Path) -> Iterator[Answer | Pair]:
    """Read the answers, or a reward model's pairs, of the test or else of the last samples."""
    files = [*sorted((directory / "samples").glob("*.jsonl")), *directory.glob("predictions.csv")]
    for place, row in _rows(files, ("prompt",)):
        if "chosen_reward" in row:
            _require(row, [field.name for field in fields(Pair)], place)
            prompt, chosen, rejected = _texts([row[name] for name in ("prompt", "chosen", "rejected")], place)
            rewards = (_number(row, name, place) for name in ("chosen_reward", "rejected_reward"))
            yield Pair(prompt, chosen, rejected, *rewards)
            continue
        _require(row, ["prediction"], place)
        given = row.get("references") or [row[name] for name in row if re.fullmatch(r"reference\d+", name)]
        prompt, prediction, *references = _texts(
            [row["prompt"], row["prediction"], *(given if isinstance(given, list) else [None])], place
        )
        yield Answer(prompt, tuple(filter(None, references)), prediction)


def _texts(values: Sequence[Any], place: str) -> Sequence[str]:
    if not all(isinstance(value, str) for value in values):
        raise ParleyError(f"{place}: prompt, references and answers are not all texts; restore the file.")
    return values


def _changes(directory: Path) -> Iterator[Change]:
    files = [*sorted((directory / "before_after").glob("*.csv")), *directory.glob("before_after.csv")]
    for place, row in _rows(files, ("query", "response_before", "response_after")):
        names = [name.removesuffix("_before") for name in row if name.endswith("_before") and name != "response_before"]
        figures = {}
        for name in names:
            if f"{name}_after" not in row:
                continue
            figures[name] = (_number(row, f"{name}_before", place), _number(row, f"{name}_after", place))
        yield Change(row["query"], row["response_before"], row["response_after"], figures)


def _number(row: Mapping[str, Any], name: str, place: str) -> float:
    try:
        return float(row[name])
    except (TypeError, ValueError) as error:
        raise ParleyError(f"{place}: {name} is {row[name]!r}, no number; mend the file.") from error


def _rows(files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of the last file, each with its place; they must have these columns."""
    for row in read_rows(files[-1]) if files else ():
        place = f"{files[-1]}, {row.place}"
        _require(row.cells, columns, place)
        yield place, row.cells


def _require(row: Mapping[str, Any], columns: Sequence[str], place: str) -> None:
    if lacking := [name for name in columns if name not in row]:
        raise ParleyError(f"{place}: there is no {lacking[0]}; restore the file, or remove it.")
