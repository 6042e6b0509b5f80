"""Which versions of the libraries are allowed; `make test-floors` runs this with the lowest in their place."""

from __future__ import annotations

import os
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from scripts.floors import floors

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ALLOWED = {requirement.name: requirement.specifier for requirement in map(Requirement, PROJECT["dependencies"])}


@pytest.mark.parametrize(
    ("package", "refused", "taken"),
    [("lightning", ["2.5.6", "2.6.2", "2.6.3", "2.7.0"], ["2.6.0", "2.6.6"]), ("jsonargparse", ["5.0.0"], ["4.53.0"])],
)
def test_what_is_known_to_be_bad_is_not_installed(package, refused, taken):
    assert list(ALLOWED[package].filter([*refused, *taken])) == taken


def test_every_dependency_has_a_floor():
    assert floors().keys() == ALLOWED.keys() - {"torch"}
    assert all(ALLOWED[package].contains(floor) for package, floor in floors().items())


def test_the_tested_set_is_allowed():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pinned = {name.lower().replace("_", "-"): pin for name, pin in pinned.items()}
    assert all(specifier.contains(pinned[package.lower()]) for package, specifier in ALLOWED.items())


@pytest.mark.skipif("floors" not in os.environ.get("PYTHONPATH", ""), reason="`make test-floors` runs this")
@pytest.mark.parametrize("package", floors())
def test_the_lowest_version_is_the_one_that_runs(package):
    assert Version(version(package)) == Version(floors()[package])
