"""Kills and stops runs that log to W&B offline: resumed, all of a run's files together must have every row once.

    python -m scripts.trial wandb_kills --kills 3 --seed 0

A case is a run that is ended so many times in one way: SIGKILL to its process group or to its main process alone,
SIGTERM to the group, SIGKILL to a group of two DDP processes. It holds where everything that `scripts/crash_test.py`
compares is equal, W&B's rows, steps, tables and summary with `metrics.csv` among it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scripts import crash_test
from scripts.trial import Outcome
from scripts.trial.tools.part import collect, options_of

WAYS = {
    "SIGKILL to the group": ("--how", "group"),
    "SIGKILL to the main process": ("--how", "alone"),
    "SIGTERM to the group": ("--how", "term-group"),
    "SIGKILL to a group of two processes": ("--processes", "2"),
}


def try_ways(names: Sequence[str], kills: int, seed: int) -> Iterator[Outcome]:
    """End runs in each of these ways, so often."""
    for way in names:
        line = ["--task", "seq2seq", "--kills", str(kills), "--seed", str(seed), *WAYS[way]]
        try:
            differences = crash_test.crash(line)[1].differences
        except SystemExit as error:
            differences = [str(error)]
        case = f"{way}, {kills} times (crash_test.py {' '.join(line)})"
        yield Outcome(case, not differences, "; ".join(differences[:3]))


def main(words: Sequence[str]) -> list[Outcome]:
    parser = options_of("wandb_kills", __doc__, only="ways")
    parser.add_argument("--kills", type=int, default=3, help="of each case (3)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    given = parser.parse_args(words)
    names = [way for way in WAYS if way.startswith(tuple(given.only))]
    return collect(try_ways(names, given.kills, given.seed), verbose=given.verbose)
