"""Whether two values are the same, to the bit or to float tolerance."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

ON_THE_CLOCK = ("tokens_per_second", "time/")
OF_MINIBATCHES = ("ppo/", "rloo/", "grpo/")  # means over a step's minibatches, which are cut as there are processes


def metric_log(file: Path, *, closely: bool = False) -> list[dict[str, float | str]]:
    """A metric log's rows as `comparable_rows`."""
    with file.open() as stream:
        return comparable_rows(csv.DictReader(stream), closely=closely)


def comparable_rows(rows: Iterable[Mapping[str, Any]], *, closely: bool = False) -> list[dict[str, float | str]]:
    """The figures of a log that have to be the same.

    Args:
        rows: Numbers, or the text of numbers; blanks are left out, and what is another one whenever it is measured.
        closely: Leave out too what is another one on another number of processes.
    """
    kept = [
        {
            name: _figure(value)
            for name, value in row.items()
            if value != "" and not is_on_the_clock(name) and not (closely and name.startswith(OF_MINIBATCHES))
        }
        for row in rows
    ]
    return [row for row in kept if row.keys() - {"step", "epoch"}]


def _figure(value: float | str) -> float | str:
    """A number that equals itself, NaN too."""
    return float(value) if float(value) == float(value) else "nan"


def is_on_the_clock(name: str) -> bool:
    """Whether a figure is another one whenever it is measured."""
    return any(part in name for part in ON_THE_CLOCK)


def differences(first: Any, second: Any, place: str = "checkpoint", tolerance: float = 0.0) -> Iterator[str]:
    """The places where two values are not the same to the bit, or further apart than the tolerance."""
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            yield f"{place}: only one has {sorted(map(str, first.keys() ^ second.keys()))}"
        for key in first.keys() & second.keys():
            yield from differences(first[key], second[key], f"{place}.{key}", tolerance)
    elif isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        for index, (mine, other) in enumerate(zip(first, second, strict=True)):
            yield from differences(mine, other, f"{place}[{index}]", tolerance)
    elif isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        if first.dtype != second.dtype or not torch.allclose(first, second, tolerance, tolerance, equal_nan=True):
            yield place
    elif (
        isinstance(first, float)
        and isinstance(second, float)
        and math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)
    ):
        return
    elif not (first == second or (first != first and second != second)):
        yield f"{place}: {first!r} and {second!r}"
