"""Which runs a command line means: directories of runs, and directories that hold some."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from src.errors import ParleyError

log = logging.getLogger(__name__)


def find_runs(given: Sequence[Path]) -> list[Path]:
    """The directories of the runs that are meant.

    Args:
        given: A run's directory each, or one that is none, which stands for all runs below it, the oldest first.

    Raises:
        ParleyError: One is not there or has no run in it, or a run is given twice.
    """
    found: dict[Path, Path] = {}
    for directory in given:
        for run in _below(directory):
            if run.resolve() in found:
                raise ParleyError(f"{run} is given twice; leave one of them out.")
            found[run.resolve()] = run
    return list(found.values())


def _below(directory: Path) -> list[Path]:
    if (directory / "metrics.csv").is_file():
        return [directory]
    if not directory.is_dir():
        raise ParleyError(f"there is no run {directory}; give a run's directory, such as runs/version_0.")
    runs = sorted((file.parent for file in directory.rglob("metrics.csv") if file.is_file()), key=_begun)
    if not runs:
        raise ParleyError(
            f"{directory} is no run and holds none: there is no metrics.csv below it; give a run's directory, "
            "such as runs/version_0."
        )
    log.info("%d run%s below %s: %s", len(runs), "" if len(runs) == 1 else "s", directory, ", ".join(map(str, runs)))
    return runs


def _begun(run: Path) -> tuple[float, Path]:
    """When a run wrote its settings, which is before all else; of equals the name decides."""
    settings = run / "config.yaml"
    return (settings if settings.is_file() else run / "metrics.csv").stat().st_mtime, run
