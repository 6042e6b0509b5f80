"""Whether W&B's files of a run hold what its metric log does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.compare_values import comparable_rows, differences, is_on_the_clock, metric_log
from src.callbacks.storage import read_checkpoint
from src.callbacks.wandb_files import records_of, rows_on_disk

OF_WANDB = ("_step", "_runtime", "_timestamp", "_wandb")


def wandb_faults(run: Path, run_id: str, tolerance: float = 0.0) -> Iterator[str]:
    """What is not right about W&B's files of a run that has ended.

    Right is: all of its files together hold every row of `metrics.csv` once and in order, W&B's steps count them, and
    the last file's summary is the last value of each figure.

    Args:
        run: Its directory, beside W&B's.
        run_id: W&B's id of it.
        tolerance: More than 0 where the run was on other numbers of processes, which do not compute its last steps to
            the bit again.
    """
    root = run.parent
    rows = rows_on_disk(root / "wandb", run_id)
    logged, expected = metrics_of(rows, tolerance), metric_log(run / "metrics.csv", closely=tolerance > 0)
    if any(differences(logged, expected, tolerance=tolerance)):
        lost = sum(row["step"] not in {other["step"] for other in logged} for row in expected)
        yield f"W&B: {len(logged)} rows for {len(expected)} of metrics.csv, of which it lacks {lost}, or other figures"
    steps = [row["_step"] for row in rows]
    if steps != list(range(len(steps))):
        yield f"W&B: steps do not count its {len(steps)} rows"
    summary = summary_of(max(root.glob(f"wandb/*run-*-{run_id}/run-*.wandb")))
    for name, value in _last_values(rows).items():
        if not is_on_the_clock(name) and not _same(summary.get(name), value):
            yield f"W&B: the summary says {name} {summary.get(name)}, the last row {value}"


def run_id_of(checkpoint: Path) -> str | None:
    """W&B's id of the run that wrote a checkpoint, where it had one."""
    loggers = read_checkpoint(checkpoint)["callbacks"]["ExactResume"]["loggers"]
    return next((state["id"] for state in loggers if "id" in state), None)


def tables_of(root: Path, run_id: str) -> list[tuple[str, str]]:
    """The names and digests of W&B's tables, in order."""
    rows = rows_on_disk(root / "wandb", run_id)
    return [(name, value["sha256"]) for row in rows for name, value in row.items() if isinstance(value, dict)]


def metrics_of(rows: list[dict[str, Any]], tolerance: float) -> list[dict[str, float | str]]:
    """W&B's rows as those of a metric log, without tables."""
    figures = [
        {
            "step" if name == "trainer/global_step" else name: value
            for name, value in row.items()
            if name not in OF_WANDB and not isinstance(value, dict)
        }
        for row in rows
    ]
    return comparable_rows(figures, closely=tolerance > 0)


def summary_of(file: Path) -> dict[str, Any]:
    """What W&B shows of a run whose last file this is; of tables only that there is one."""
    summary: dict[str, Any] = {}
    for record in records_of(file):
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                name, *inner = item.nested_key or [item.key]
                summary[name] = {} if inner else json.loads(item.value_json)
    return summary


def _last_values(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for row in rows for name, value in row.items() if name not in OF_WANDB}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):  # tables
        return True
    return bool(one == other or (one != one and other != other))
