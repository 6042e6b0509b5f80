"""Disks that are full, read-only or of somebody else, before every command that writes.

    python -m scripts.trial disks
    python -m scripts.trial disks --only generate     # the cases whose name begins so

Full and read-only disks are file systems in memory, where mounting one is permitted (as root, or in a container that
allows it); the rest is tried everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from scripts.trial import Outcome
from scripts.trial.surroundings.disk_cases import disk_cases, recoveries
from scripts.trial.surroundings.run import make_run
from scripts.trial.tools.part import collect, options_of, workplace


def main(words: Sequence[str]) -> list[Outcome]:
    given = options_of("disks", __doc__, only="cases").parse_args(words)
    only = tuple(given.only)
    with workplace() as place:
        run = make_run(place / "whole")
        tried = chain(disk_cases(run, place / "a", only), recoveries(run, place / "b", only))
        return collect(tried, verbose=given.verbose)
