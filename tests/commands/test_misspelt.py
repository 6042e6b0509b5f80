"""A misspelt word is answered with the nearest that there is."""

from __future__ import annotations

import pytest

from src.cli import main


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("genrate x", "parley genrate: there is no such command; the nearest is generate."),
        ("xyzzy", "parley xyzzy: there is no such command; choose one of: fit, validate, "),
        ("generate x --promt hi", "parley generate: there is no option --promt; the nearest is --prompt; `parley gen"),
        ("tokenize x y --xyzzy=3", "parley tokenize: there is no option --xyzzy; `parley tokenize --help` shows what"),
        ("generate x --max-new-tokens ten", "parley generate: --max-new-tokens is ten; it must be a whole number; "),
    ],
)
def test_nearest_word(words: str, line: str, capsys: pytest.CaptureFixture[str]):
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1
