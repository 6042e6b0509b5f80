"""Damaged checkpoints before every command that reads one, and odd files where a run looks for its own.

python -m scripts.trial odd_files                     # 300 flips for each of five commands, then the odd files
python -m scripts.trial odd_files --flips 30 --only generate
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
from scripts.trial.surroundings.flips import flip_cases
from scripts.trial.surroundings.odd import odd_cases
from scripts.trial.surroundings.run import make_run
from scripts.trial.tools.forks import import_libraries


def main(words: Sequence[str]) -> list[Outcome]:
    parser = argparse.ArgumentParser(prog="python -m scripts.trial odd_files", description=__doc__)
    parser.add_argument("--flips", type=int, default=300, metavar="N", help="for each command (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the flips (0)")
    parser.add_argument("--only", default="", metavar="NAME", help="export, generate, chat, compare, fit or odd")
    parser.add_argument("--verbose", action="store_true", help="each case as it is tried")
    given = parser.parse_args(words)
    import_libraries()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="parley-trial-") as temporary:
        place = Path(temporary)
        run = make_run(place / "whole")
        flips = flip_cases(run, place / "flips", given.flips, given.seed, given.only) if given.only != "odd" else ()
        odd = odd_cases(run, place / "odd") if given.only in ("", "odd") else ()
        for outcome in chain(flips, odd):
            outcomes.append(outcome)
            if given.verbose:
                print(f"{outcome.case}: {'held' if outcome.held else f'NOT: {outcome.said}'}", flush=True)
    return outcomes


if __name__ == "__main__":
    start = time.perf_counter()
    sys.exit(not report("odd_files", main(sys.argv[1:]), time.perf_counter() - start))
