"""Bad inputs: each is answered with one line and status 2, and good ones beside them are taken.

python -m scripts.trial bad_inputs
python -m scripts.trial bad_inputs --only yaml model     # the kinds whose name begins so
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.trial import Outcome
from scripts.trial.inputs import documents, models, numbers, options
from scripts.trial.inputs.case import Case, what_is_wrong
from scripts.trial.inputs.workshop import Workshop
from scripts.trial.tools.forks import ask, import_libraries

TABLES = (documents, options, models, numbers)


def all_cases(workshop: Workshop) -> Iterator[Case]:
    """Every case of every table."""
    for table in TABLES:
        yield from table.cases(workshop)


def try_case(case: Case, directory: Path) -> Outcome:
    """Give the command the words of a case, in a directory of its own."""
    wrong = what_is_wrong(case, ask(case.words, directory, given=case.given))
    return Outcome(str(case), not wrong, wrong)


def main(words: Sequence[str]) -> list[Outcome]:
    parser = argparse.ArgumentParser(prog="python -m scripts.trial bad_inputs", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], metavar="KIND", help="the kinds whose name begins so")
    parser.add_argument("--verbose", action="store_true", help="each case as it is tried")
    given = parser.parse_args(words)
    import_libraries()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="parley-trial-") as temporary:
        workshop = Workshop(Path(temporary))
        workshop.prepare()
        chosen = [case for case in all_cases(workshop) if case.kind.startswith(tuple(given.only))]
        for number, case in enumerate(chosen):
            start = time.monotonic()
            outcomes.append(try_case(case, workshop.root / "tried" / str(number)))
            if given.verbose:
                mark = "held" if outcomes[-1].held else f"NOT: {outcomes[-1].said}"
                print(f"{time.monotonic() - start:5.1f} s  {case}: {mark}", flush=True)
    return outcomes
