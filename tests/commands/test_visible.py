"""What a terminal would obey is shown, and kept as it is in files."""

from __future__ import annotations

import csv
import io
import json
import logging
import unicodedata
from pathlib import Path

import pytest

from src.cli import main
from src.commands.output import show, show_json
from src.commands.visible import on_one_line, visible, visible_json
from src.inference import answers

EVIL = "red\x1b[31m \x1b]0;owned\x07 \x9b2J \u202eabc\u2066 \x08\x08\x7f \r over"
GOOD = "안녕 👩‍👩‍👧 é\tא \N{ZERO WIDTH NON-JOINER}क्‍ष\nnext — “line”"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def obeyed(text: str) -> list[str]:
    """Characters that move a cursor, change colours or turn the direction, by Unicode's own tables."""
    turns = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return [
        character
        for character in text
        if (unicodedata.category(character) == "Cc" and character not in "\n\t")
        or unicodedata.bidirectional(character) in turns
    ]


def test_every_order_is_shown_and_every_text_stays():
    assert visible(GOOD) == GOOD
    assert visible("a\r\nb") == "a\nb"
    everything = "".join(map(chr, range(0x11000)))
    assert not obeyed(visible(everything))
    shown = [character for character in map(chr, range(0x11000)) if visible(character) != character]
    assert all(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in shown)
    assert visible("\x1b\x9b\u202e") == r"\x1b\x9b\u202e"
    assert on_one_line("a\nb\x1b") == r"a\nb\x1b"
    assert json.loads(visible_json(json.dumps(EVIL, ensure_ascii=False))) == EVIL


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_and_json(monkeypatch: pytest.MonkeyPatch, terminal: bool):
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    show_json({"text": EVIL})
    assert json.loads(out.getvalue()) == {"text": EVIL}
    assert bool(obeyed(out.getvalue())) != terminal
    show([{f"a{EVIL}": f"b{EVIL}"}], title=f"c{EVIL}")
    said = out.getvalue()
    assert ("\x1b]0;owned" in said) != terminal
    assert ("\u202e" in said) != terminal
    assert (r"\x1b]0;owned\x07" in said) == terminal


@pytest.mark.parametrize("words", [["generate", "--prompt", "Hi"], ["chat"]], ids=" ".join)
@pytest.mark.parametrize("terminal", [True, False])
def test_answers(words: list[str], terminal: bool, tiny_base, monkeypatch: pytest.MonkeyPatch):
    def say(*_: object, streamer: object = None, **__: object) -> list[str]:
        if streamer is not None:
            streamer.write(EVIL)  # type: ignore[attr-defined]
        return [EVIL]

    monkeypatch.setattr("src.inference.answers.generate_text", say)
    monkeypatch.setattr("src.inference.chat.generate_text", say)
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n/history\n")))
    command, *rest = words
    assert main([command, str(tiny_base("gpt2")), *rest]) == 0
    assert (visible(EVIL) if terminal else EVIL) in out.getvalue()
    assert bool(obeyed(out.getvalue())) != terminal


def test_lines_about_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    name = tmp_path / "a\x1b[31m\nb.ckpt"
    assert main(["export", "--checkpoint", str(name), "--output", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert not obeyed(said)
    logging.getLogger("src").warning("Passed over %s.", name)
    assert not obeyed(capsys.readouterr().err)


@pytest.mark.parametrize("quote", [True, False])
def test_cells_that_begin_like_a_formula(tiny_base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quote: bool):
    texts = iter(["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "no = formula"])
    monkeypatch.setattr(answers, "generate_text", lambda *_, **__: [next(texts)])
    (tmp_path / "in.txt").write_text("x\n" * 6)
    words = ["generate", str(tiny_base("gpt2")), "--input", str(tmp_path / "in.txt"), "--batch-size", "1"]
    out = tmp_path / "out.csv"
    assert main([*words, "--output", str(out), *["--quote-formulas"] * quote]) == 0
    with out.open(newline="") as stream:
        cells = [row["prediction"] for row in csv.DictReader(stream)]
    mark = "'" * quote
    assert cells == [f"{mark}=1+1", f"{mark}+1", f"{mark}-1", f"{mark}@SUM(A1)", f"{mark}\t=1", "no = formula"]
