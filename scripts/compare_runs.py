"""Whether two runs ended alike, to the bit or to float tolerance."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.compare_values import differences, is_on_the_clock, metric_log
from scripts.compare_wandb import run_id_of, tables_of, wandb_faults
from src.callbacks.storage import read_checkpoint

TOLERANCE = 1e-3  # relative, of figures and weights that were computed on another number of processes


def compare_runs(first: Path, second: Path) -> list[str]:
    """What differs between two runs that have ended.

    Compared are all checkpoints that are left (weights, optimiser, schedule, loops, random states, callbacks), the
    metric log, every table, the settings, W&B's rows, and which files there are; what depends on the clock is not.

    Args:
        first: A directory of runs, of which the newest with checkpoints counts.
        second: Another; runs that were killed before their first checkpoint may be beside it.

    Returns:
        A line for each difference.
    """
    runs = [run_of(root) for root in (first, second)]
    return [
        *_compare_checkpoints(*runs),
        *_compare_logs(*runs),
        *_compare_tables(*runs),
        *_compare_settings(*runs),
        *_compare_files(*runs),
        *_strays(second),
        *_compare_wandb(*runs),
    ]


def compare_runs_closely(first: Path, second: Path) -> list[str]:
    """What differs by more than the order of sums between two runs on other numbers of processes.

    Compared are the weights, the metric log, what was learned from, and W&B's rows with the metric log; not the figures
    of a method that are means over a step's minibatches.

    Args:
        first: As for `compare_runs`.
        second: Likewise.
    """
    runs = [run_of(root) for root in (first, second)]
    ours, theirs = (
        {
            "weights": read_checkpoint(checkpoints_of(run.parent)[-1])["state_dict"],
            "metrics.csv": metric_log(run / "metrics.csv", closely=True),
            "rollouts.jsonl": [
                json.loads(line) for file in run.glob("rollouts.jsonl") for line in file.read_text().splitlines()
            ],
        }
        for run in runs
    )
    return [
        *differences(ours, theirs, "run", TOLERANCE),
        *_strays(second),
        *_compare_wandb(*runs, tolerance=TOLERANCE),
    ]


def run_of(root: Path) -> Path:
    """The newest run that has checkpoints."""
    return checkpoints_of(root)[-1].parents[1]


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
    if state["position"] != "in validation":  # what Lightning resets before the next one
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        del progress["current"], progress["is_last_batch"]
    for logger in state["loggers"]:
        logger.pop("id", None)  # W&B's, another for each run
    for kind in ("pending", "metrics"):
        state[kind] = {name: value for name, value in state[kind].items() if not is_on_the_clock(name)}
    return checkpoint


def _compare_checkpoints(first: Path, second: Path) -> Iterator[str]:
    names = [{file.name for file in run.glob("checkpoints/*.ckpt")} for run in (first, second)]
    if names[0] != names[1]:
        yield f"checkpoints: {sorted(names[0])} and {sorted(names[1])}"
    for name in sorted(names[0] & names[1]):
        ours, theirs = (_comparable(read_checkpoint(run / "checkpoints" / name)) for run in (first, second))
        yield from differences(ours, theirs, name)


def _compare_logs(first: Path, second: Path) -> Iterator[str]:
    logs = [metric_log(run / "metrics.csv") for run in (first, second)]
    if logs[0] != logs[1]:
        pairs = enumerate(zip(*logs, strict=False))
        where = next((row for row, pair in pairs if pair[0] != pair[1]), min(map(len, logs)))
        yield f"metrics.csv: {len(logs[0])} and {len(logs[1])} rows, the first difference in row {where}"


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


def _compare_settings(first: Path, second: Path) -> Iterator[str]:
    for name in sorted({file.name for run in (first, second) for file in run.glob("*.yaml")}):
        if _settings_of(first / name) != _settings_of(second / name):
            yield f"{name} differs"


def _settings_of(file: Path) -> list[str]:
    """The lines of a settings file, but for where the run is and where it went on."""
    text = file.read_text().replace(str(file.parents[1]), "ROOT")
    return [line for line in text.splitlines() if line.split(":")[0].strip() not in ("ckpt_path", "default_root_dir")]


def _compare_files(first: Path, second: Path) -> Iterator[str]:
    names = [{str(file.relative_to(run)) for file in run.rglob("*")} for run in (first, second)]
    if names[0] != names[1]:
        yield f"only one run has {sorted(names[0] ^ names[1])}"


def _strays(root: Path) -> Iterator[str]:
    """What is beside a run's directories and its loggers'; a run that was killed before a checkpoint leaves its own."""
    ids = {file.parent.name for file in root.glob("*/wandb-rows.jsonl")}
    runs = [path for path in root.iterdir() if path.name.startswith("version_")]
    strays = {path.name for path in root.iterdir()} - {run.name for run in runs} - ids - {"wandb"}
    if strays or len(ids) > len(runs):
        yield f"stray in {root.name}: {sorted(strays)}, {len(ids)} runs of W&B's for {len(runs)}"


def _compare_wandb(first: Path, second: Path, *, tolerance: float = 0.0) -> Iterator[str]:
    ids = [run_id_of(checkpoints_of(run.parent)[-1]) for run in (first, second)]
    found = []
    for run, run_id in zip((first, second), ids, strict=True):
        if run_id is not None:
            yield from wandb_faults(run, run_id, tolerance)
            found.append(tables_of(run.parent, run_id))
    if not tolerance and found and found[0] != found[-1]:
        yield f"W&B: {len(found[0])} and {len(found[-1])} tables, or other ones"
