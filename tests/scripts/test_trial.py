"""The trial counts what held, and fails where something did not, or where nothing was tried."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from scripts.trial import Outcome
from scripts.trial import __main__ as trial


@pytest.fixture
def part(monkeypatch):
    """A part with these outcomes, and the words that it was given."""

    def make(name, *outcomes):
        module, given = ModuleType(name), []
        module.main = lambda words: given.extend(words) or list(outcomes)
        monkeypatch.setitem(sys.modules, f"scripts.trial.{name}", module)
        names = [*trial.part_names(), name]
        monkeypatch.setattr(trial, "part_names", lambda: names)
        return given

    return make


GOOD, BAD = Outcome("a", True), Outcome("b", False, "a traceback")


@pytest.mark.parametrize(
    ("outcomes", "status", "figure"),
    [([GOOD, GOOD], 0, "held 2 of 2"), ([GOOD, BAD], 1, "held 1 of 2"), ([], 1, "held 0 of 0")],
)
def test_a_part_holds_where_all_of_it_does(part, capsys, outcomes, status, figure):
    given = part("one", *outcomes)
    part("two", GOOD)
    assert trial.main(["one", "two"]) == status
    said = capsys.readouterr().out
    assert f"one: {figure}" in said
    assert "two: held 1 of 1" in said
    assert ("b: a traceback" in said) == (BAD in outcomes)
    assert given == []


def test_options_are_for_one_part(part, capsys):
    given = part("one", GOOD)
    assert trial.main(["one", "--seed", "3"]) == 0
    assert given == ["--seed", "3"]
    part("two", GOOD)
    for words, said in ((["one", "two", "--seed", "3"], "name it alone"), (["three"], "no part 'three'")):
        with pytest.raises(SystemExit):
            trial.main(words)
        assert said in capsys.readouterr().err
