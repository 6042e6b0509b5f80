"""A short version of two parts of the trial; the whole of it is `python -m scripts.trial odd_files disks`."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from unittest.mock import ANY

import pytest

from scripts.trial import Outcome
from scripts.trial.surroundings.disk import permissions_bind
from scripts.trial.surroundings.disk_cases import disk_cases
from scripts.trial.surroundings.flips import damages, flip_cases
from scripts.trial.surroundings.odd import odd_cases
from scripts.trial.surroundings.run import Run, make_run
from scripts.trial.tools.forks import import_libraries

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    import_libraries()
    return make_run(tmp_path_factory.mktemp("trial") / "whole")


def not_held(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if not outcome.held]


def test_flipped_bits(run: Run, tmp_path: Path):
    outcomes = list(flip_cases(run, tmp_path / "flips", 9, 1, ["export", "generate"]))  # each begins from a whole file
    assert len(outcomes) == 2 * 9
    assert not not_held(outcomes)


def test_flips_are_everywhere(run: Run):
    data = run.newest.read_bytes()
    places = [place for place, _ in damages(data, 300, random.Random(0))]
    assert min(places) < 200
    assert max(places) > len(data) - 500
    assert all(0 < mask < 256 for _, mask in damages(data, 300, random.Random(0)))


def test_a_damaged_file_that_is_read_does_not_hold(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The trial can fail: without the digest, altered weights go through."""
    monkeypatch.setattr("src.callbacks.storage.content_digest", lambda _: ANY)
    outcomes = list(flip_cases(run, tmp_path / "flips", 24, 2, ["export"]))
    assert not_held(outcomes)


def test_odd_files(run: Run, tmp_path: Path):
    outcomes = list(islice(odd_cases(run, tmp_path / "odd"), 5))  # links, and a pipe that would be waited for
    assert len(outcomes) == 5
    assert not not_held(outcomes)


@pytest.mark.parametrize("command", ["report", "generate jsonl"])
def test_disks(run: Run, tmp_path: Path, command: str):
    outcomes = list(disk_cases(run, tmp_path / "disks", (command,)))
    assert len(outcomes) in (1, 4)  # without permission; full, nearly full and read-only where mounting is permitted
    assert not not_held(outcomes)


def test_permissions_bind_though_it_is_roots(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    file.chmod(0o400)
    with permissions_bind(), pytest.raises(PermissionError):
        file.write_text("x")
