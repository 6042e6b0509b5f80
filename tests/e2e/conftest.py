from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from src.cli import main


@pytest.fixture
def parley(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command in a directory of its own, as a user would type it."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> int:
        return main([str(word) for word in words])

    return run


@pytest.fixture
def metrics(tmp_path: Path) -> Callable[..., list[float]]:
    """A column of a run's metrics.csv, blanks left out."""

    def read(column: str, version: int = 0) -> list[float]:
        with (tmp_path / "runs" / f"version_{version}" / "metrics.csv").open() as stream:
            return [float(row[column]) for row in csv.DictReader(stream) if row.get(column)]

    return read


def words_of(options: dict[str, object], prefix: str = "") -> Sequence[str]:
    """Options as command-line words."""
    return [word for key, value in options.items() for word in (f"--{prefix}{key}", str(value))]
