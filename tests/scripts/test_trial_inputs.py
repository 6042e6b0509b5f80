"""The short version of the trial's bad inputs, and that the trial would see what is wrong."""

from __future__ import annotations

from itertools import groupby

import pytest

from scripts.trial.bad_inputs import TABLES, try_case
from scripts.trial.inputs import documents, numbers, options
from scripts.trial.inputs.case import Case, what_is_wrong
from scripts.trial.inputs.workshop import Workshop
from scripts.trial.tools.forks import Answer, import_libraries

BAD = Case("number", "lr", ("fit",), "lr")
LINE = "parley fit: lr is nan; it must be 0 or more.\n"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    import_libraries()
    made = Workshop(tmp_path_factory.mktemp("trial"))
    made.make_bases()
    return made


def in_short(table, workshop) -> list[Case]:
    """Of each kind some bad ones and, once for all, a good one."""
    cases = [case for case in table if not case.accepted]
    by_kind = [list(group) for _, group in groupby(cases, key=lambda case: case.kind)]
    good = [case for case in table if case.accepted][:1]
    return [case for group in by_kind for case in group[:: max(1, len(group) // 2)][:2]] + good


@pytest.mark.slow
def test_each_is_answered(workshop):
    """One process forks them: what is imported is imported once."""
    chosen = in_short(list(numbers.cases(workshop)), workshop)[:44]
    chosen += [case for case in documents.yaml_cases(workshop) if not case.accepted][::2]
    outcomes = [try_case(case, workshop.root / "tried" / str(number)) for number, case in enumerate(chosen)]
    assert len(outcomes) >= 50
    assert [outcome for outcome in outcomes if not outcome.held] == []


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (Answer(2, "", LINE), ""),
        (Answer(2, "", f"Seed set to 42\n{LINE}"), ""),
        (Answer(None, "", ""), "hangs"),
        (Answer(0, "", ""), "is accepted"),
        (Answer(1, "", LINE), "ends with status 1"),
        (Answer(2, "", f"Traceback (most recent call last):\n{LINE}"), "a traceback"),
        (Answer(2, "", LINE + LINE), "2 lines"),
        (Answer(2, "", f"{LINE}and more\n"), "the last line"),
        (Answer(2, "", LINE.replace("lr", "that")), "does not say"),
        (Answer(2, "", LINE.replace("nan", "nan" * 300)), "characters"),
    ],
)
def test_what_is_wrong_is_seen(answer, wrong):
    said = what_is_wrong(BAD, answer)
    assert wrong in said
    assert bool(said) == bool(wrong)


def test_refusing_all_does_not_pass():
    good = Case("number", "good", ("fit",), accepted=True)
    assert "is refused" in what_is_wrong(good, Answer(2, "", LINE))
    assert what_is_wrong(good, Answer(0, "", "")) == ""


def test_there_are_enough(workshop, monkeypatch):
    """At least 400 bad ones, no two alike, and a good one in every table."""
    (workshop.root / "runs/seq2seq/version_0/checkpoints").mkdir(parents=True, exist_ok=True)
    (workshop.root / "runs/seq2seq/version_0/checkpoints/step=1.ckpt").touch()
    workshop.write("predictions.jsonl", "{}")
    tables = [list(table.cases(workshop)) for table in (numbers, documents, options)]
    bad = [case.words for table in tables for case in table if not case.accepted]
    assert len(bad) >= 400
    assert len(set(bad)) == len(bad)
    assert all(any(case.accepted for case in table) for table in tables)
    assert set(TABLES) >= {numbers, documents, options}
