"""Kills and stops runs that log to W&B offline: resumed, all of a run's files together must have every row once.

    python -m scripts.trial.wandb_kills --kills 3 --seed 0

A case is a run that is ended so many times in one way: SIGKILL to its process group or to its main process alone,
SIGTERM to the group, SIGKILL to a group of two DDP processes. It holds where everything that `scripts/crash_test.py`
compares is equal, W&B's rows, steps, tables and summary with `metrics.csv` among it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from scripts import crash_test
from scripts.trial import Outcome
from scripts.trial.__main__ import report

WAYS = {
    "SIGKILL to the group": ("--how", "group"),
    "SIGKILL to the main process": ("--how", "alone"),
    "SIGTERM to the group": ("--how", "term-group"),
    "SIGKILL to a group of two processes": ("--processes", "2"),
}


def main(words: Sequence[str] | None = None) -> list[Outcome]:
    """End runs in each of the ways."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.trial.wandb_kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=3, help="of each case (3)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    given = parser.parse_args(words)
    outcomes = []
    for way, options in WAYS.items():
        line = ["--task", "seq2seq", "--kills", str(given.kills), "--seed", str(given.seed), *options]
        try:
            differences = crash_test.crash(line)[1].differences
        except SystemExit as error:
            differences = [str(error)]
        case = f"{way}, {given.kills} times (crash_test.py {' '.join(line)})"
        outcomes.append(Outcome(case, not differences, "; ".join(differences[:3])))
    return outcomes


if __name__ == "__main__":
    start = time.perf_counter()
    sys.exit(not report("wandb_kills", main(), time.perf_counter() - start))
