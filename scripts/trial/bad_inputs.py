"""Bad inputs: each is answered with one line and status 2, and good ones beside them are taken.

python -m scripts.trial bad_inputs
python -m scripts.trial bad_inputs --only yaml model     # the kinds whose name begins so
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.trial import Outcome
from scripts.trial.inputs import documents, models, numbers, options
from scripts.trial.inputs.case import Case, what_is_wrong
from scripts.trial.inputs.workshop import Workshop
from scripts.trial.tools.forks import ask
from scripts.trial.tools.part import collect, options_of, workplace

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
    given = options_of("bad_inputs", __doc__, only="kinds").parse_args(words)
    with workplace() as place:
        workshop = Workshop(place)
        workshop.prepare()
        chosen = [case for case in all_cases(workshop) if case.kind.startswith(tuple(given.only))]
        tried = (try_case(case, place / "tried" / str(number)) for number, case in enumerate(chosen))
        return collect(tried, verbose=given.verbose)
