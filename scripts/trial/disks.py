"""Disks that are full, read-only or of somebody else, before every command that writes.

    python -m scripts.trial disks
    python -m scripts.trial disks --only generate     # the cases whose name begins so

Full and read-only disks are file systems in memory, where mounting one is permitted (as root, or in a container that
allows it); the rest is tried everywhere.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from scripts.trial import Outcome
from scripts.trial.__main__ import report
from scripts.trial.surroundings.disk_cases import disk_cases, recoveries
from scripts.trial.surroundings.run import make_run
from scripts.trial.tools.forks import import_libraries


def main(words: Sequence[str]) -> list[Outcome]:
    parser = argparse.ArgumentParser(prog="python -m scripts.trial disks", description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME", help="the cases whose name begins so")
    parser.add_argument("--verbose", action="store_true", help="each case as it is tried")
    given = parser.parse_args(words)
    import_libraries()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="parley-trial-") as temporary:
        place = Path(temporary)
        run = make_run(place / "whole")
        for outcome in chain(disk_cases(run, place / "a", given.only), recoveries(run, place / "b", given.only)):
            outcomes.append(outcome)
            if given.verbose:
                print(f"{outcome.case}: {'held' if outcome.held else f'NOT: {outcome.said}'}", flush=True)
    return outcomes


if __name__ == "__main__":
    start = time.perf_counter()
    sys.exit(not report("disks", main(sys.argv[1:]), time.perf_counter() - start))
