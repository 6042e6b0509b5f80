"""Runs the parts of the trial, and says of each how much of it held."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import scripts.trial
from scripts.trial import Outcome


def part_names() -> list[str]:
    """The modules beside this one."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    return [module.name for module in found if not module.ispkg and module.name != "__main__"]


def report(name: str, outcomes: Sequence[Outcome], seconds: float) -> bool:
    """Print a part's figure, and above it what did not hold.

    Returns:
        Whether there were cases, and all of them held.
    """
    for outcome in outcomes:
        if not outcome.held:
            print(f"  {outcome.case}: {outcome.said}")
    held = sum(outcome.held for outcome in outcomes)
    print(f"{name}: held {held} of {len(outcomes)} ({seconds:.0f} s)", flush=True)
    return held == len(outcomes) > 0


def main(words: Sequence[str] | None = None) -> int:
    names = part_names()
    parser = argparse.ArgumentParser(
        prog="python -m scripts.trial",
        description=scripts.trial.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(names)}; all when none is named")
    given, options = parser.parse_known_args(words)
    for name in given.parts:
        if name not in names:
            parser.error(f"there is no part {name!r}; choose from {', '.join(names)}")
    if options and len(given.parts) != 1:
        parser.error(f"{' '.join(options)}: options are for one part; name it alone")
    all_held = True
    for name in given.parts or names:
        start = time.perf_counter()
        outcomes = importlib.import_module(f"scripts.trial.{name}").main(options)
        all_held &= report(name, outcomes, time.perf_counter() - start)
    return 0 if all_held else 1


if __name__ == "__main__":
    sys.exit(main())
