"""What every part does alike: reading its options, making a place, and saying what comes of a case."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.trial import Outcome
from scripts.trial.tools.forks import import_libraries


def options_of(part: str, description: str | None, *, only: str = "") -> argparse.ArgumentParser:
    """The options of a part.

    Args:
        part: Its name.
        description: Of its module.
        only: What `--only` chooses by the beginning; there is no such option when left out.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m scripts.trial {part}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if only:
        parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help=f"the {only} whose name begins so")
    parser.add_argument("--verbose", action="store_true", help="each case as it is tried")
    return parser


@contextmanager
def workplace() -> Iterator[Path]:
    """A directory for as long as a part lasts, and the libraries imported that its forks need."""
    import_libraries()
    with tempfile.TemporaryDirectory(prefix="parley-trial-") as temporary:
        yield Path(temporary)


def collect(outcomes: Iterable[Outcome], *, verbose: bool) -> list[Outcome]:
    """What comes of the cases, said one by one where asked for."""
    collected = []
    start = time.monotonic()
    for outcome in outcomes:
        collected.append(outcome)
        if verbose:
            mark = "held" if outcome.held else f"NOT: {outcome.said}"
            print(f"{time.monotonic() - start:5.1f} s  {outcome.case}: {mark}", flush=True)
        start = time.monotonic()
    return collected
