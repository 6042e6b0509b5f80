from __future__ import annotations

import json

import pytest

from src.commands.output import show, show_json


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_table_has_the_title_the_columns_and_aligned_figures(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        [
            {"name": "a", "score": 0.25, "count": 12345, "gain": "+1.5"},
            {"name": "bb", "score": 10.0, "count": 6, "gain": "-12.0"},
        ],
        title="A title that is a good deal longer than the table below it is wide",
    )
    title, header, _, first, second = printed(capsys)
    assert title == "A title that is a good deal longer than the table below it is wide"
    assert header.split() == ["name", "score", "count", "gain"]
    assert first.split() == ["a", "0.2500", "12,345", "+1.5"]
    assert second.split() == ["bb", "10.0000", "6", "-12.0"]
    assert len(first) == len(second)
    assert first.index("12,345") + 5 == second.index(" 6 ") + 1  # the last digits are below each other


def test_texts_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"text": "[bold]woof[/bold] :dog: 커피"}])
    assert "[bold]woof[/bold] :dog: 커피" in printed(capsys)[-1]


def test_long_texts_are_folded_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    text = "word " * 100 + "end"
    show([{"id": 1, "text": text}])
    lines = printed(capsys)
    assert max(map(len, lines)) <= 160
    assert " ".join(lines).count("word") == 100
    assert lines[-1].endswith("end")


def test_rows_may_lack_cells(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"a": 1, "b": None, "c": True}, {"c": False, "a": 2}])
    assert [line.split() for line in printed(capsys)[2:]] == [["1", "True"], ["2", "False"]]


def test_no_rows_print_nothing_but_are_a_json_list(capsys: pytest.CaptureFixture[str]) -> None:
    show([], title="Nothing")
    assert capsys.readouterr().out == ""
    show([], as_json=True)
    assert json.loads(capsys.readouterr().out) == []


def test_json_is_json_even_with_nan(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"score": float("nan"), "text": "커피", "pair": (1.5, float("inf"))}], title="T", as_json=True)
    out = capsys.readouterr().out
    assert "커피" in out
    assert json.loads(out, parse_constant=pytest.fail) == [{"score": None, "text": "커피", "pair": [1.5, None]}]
    show_json({"rows": 3})
    assert json.loads(capsys.readouterr().out) == {"rows": 3}
