"""`parley chat`, its lines from a pipe and from a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli import main

REPO = Path(__file__).resolve().parents[2]
SHORT = ["--max-new-tokens", "5", "--device", "cpu"]


@pytest.fixture
def gpt2(tiny_base: Callable[..., Path]) -> str:
    return str(tiny_base("gpt2"))


@pytest.fixture
def chat(
    gpt2: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """From lines to what stood on standard output and standard error."""

    def run(lines: list[str], *words: str, model: str = gpt2) -> tuple[str, str]:
        stdin = io.TextIOWrapper(io.BytesIO("".join(f"{line}\n" for line in lines).encode()))
        monkeypatch.setattr("sys.stdin", stdin)
        capsys.readouterr()
        assert main(["chat", model, *words, *SHORT]) == 0
        return capsys.readouterr()

    return run


def test_every_line_is_answered_as_generate_does(
    chat: Callable[..., tuple[str, str]], gpt2: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["안녕하세요", "How are you?", "", "<b>bold</b>"]
    out, err = chat(lines, "--history", "0")
    assert err == ""
    expected = ""
    for line in filter(None, lines):
        assert main(["generate", gpt2, "--prompt", line, "--format", "published", *SHORT]) == 0
        expected += capsys.readouterr().out
    assert out == expected


@pytest.mark.parametrize("architecture", ["t5", "bart", "llama"])
def test_any_model_talks(
    chat: Callable[..., tuple[str, str]], tiny_base: Callable[..., Path], architecture: str
) -> None:
    out, _ = chat(["안녕", "Hi"], model=str(tiny_base(architecture)))
    assert out.count("\n") >= 2


def test_decoding_changes_while_running(chat: Callable[..., tuple[str, str]]) -> None:
    lines = [
        "Hi",
        "/set temperature 0.7",
        "Hi",
        "/preset top-p",
        "/set seed 3",
        "/set",
        "/preset",
        "/set bad_words <unk>,x",
    ]
    out, err = chat(lines)
    assert err.splitlines() == [
        "(decoding: max_new_tokens 5, do_sample True, temperature 0.7)",
        "(decoding: max_new_tokens 5, do_sample True, top_p 0.92)",
        "(decoding: max_new_tokens 5, do_sample True, top_p 0.92, seed 3)",
        "(decoding: max_new_tokens 5, do_sample True, top_p 0.92, seed 3)",
        "(decoding: max_new_tokens 5, do_sample True, top_p 0.92, bad_words ['<unk>', 'x'], seed 3)",
    ]
    assert "beams-5-no-repeat\n" in out


def test_candidates_are_shown_and_picked(chat: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    lines = ["/candidates 3", "Hi", "/pick 2", f"/save {file}", "/candidates 1", "Hi", "/pick 2"]
    out, err = chat(lines, "--seed", "1", "--temperature", "2")
    candidates = {line[0]: line[3:] for line in out.splitlines() if line[1:3] == ": "}
    assert set(candidates) >= {"1", "2", "3"}
    saved = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert saved[1]["content"].startswith(candidates["2"].strip())
    assert "(3 answers from now on)" in err
    assert "there were 1 answers" in err
    out, err = chat(["/candidates 2", "Hi"])
    assert "the best of 2 beams" in err
    assert out.startswith("1: ")


def test_history_reset_and_retry(chat: Callable[..., tuple[str, str]]) -> None:
    out, err = chat(["one", "/retry", "/history", "/reset", "/history", "/retry", "two", "/history"])
    assert out.count("user: one") == 1
    assert out.count("user: two") == 1
    assert "everything forgotten" in err
    assert "nothing has been said yet" in err


def test_it_says_when_it_forgets(chat: Callable[..., tuple[str, str]]) -> None:
    out, err = chat([*(f"number {n} of many" for n in range(6)), "x " * 100, "/history"], "--context", "60")
    assert "the window is full: the oldest exchange is forgotten" in err
    assert "say it shorter" in err
    assert "(user: number 0 of many" in out
    assert "\nuser: number 5 of many" in out


def test_mistakes_are_one_line_and_the_talk_goes_on(chat: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    taken = tmp_path / "taken.txt"
    taken.write_text("mine")
    mistakes = [
        "/dance", "/set temprature 1", "/set temperature 0", "/set top_k many", "/preset none", "/candidates none",
        "/pick", "/save", f"/save {taken}", "/save /nowhere/talk.txt", "/set num_return_sequences 3",
    ]  # fmt: skip
    out, err = chat([*mistakes, "Hi", "//slash", "/history", "/quit", "never"])
    assert len(err.splitlines()) == len(mistakes)
    assert "user: Hi" in out
    assert "user: /slash" in out
    assert "never" not in out
    assert taken.read_text() == "mine"


@pytest.mark.parametrize(
    "line",
    [
        "/set temperature nan", "/set temperature -.inf", "/set temperature 2001-99-99", "/set temperature 0x",
        "/set seed 99999999999999999999999", "/set seed -99999999999999999999", "/set top_k " + "9" * 5000,
        "/set length_penalty inf", "/set repetition_penalty nan", "/set temperature " + "[" * 3000,
        "/candidates " + "9" * 5000, "/set stop_strings ,", "/set bad_words ,,", "/set", "/set seed", "/save x\0y",
        "/save " + "x" * 5000, "/set temperature 1e-320", "/set num_beams 99999999999",
        "/set max_new_tokens 99999999999999999999",
    ],
)  # fmt: skip
def test_no_setting_ends_the_talk(chat: Callable[..., tuple[str, str]], line: str) -> None:
    out, err = chat(["one", line, "two", "/preset greedy", "/set max_new_tokens 3", "three", "/history"])
    assert "user: one" in out
    assert "user: three" in out
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 4


def test_a_retry_that_is_refused_keeps_the_answer(chat: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    for refusal in ("/set max_new_tokens 5000", "/set num_beams 99999999999"):
        out, err = chat(["one", "two", refusal, "/retry", "/retry", "/history"])
        assert len(err.splitlines()) == 3
        assert out.count("user: one") == out.count("user: two") == 1


def test_help_and_saving_twice(chat: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    file = tmp_path / "talk.txt"
    out, err = chat(["/help", "안녕", f"/save {file}", "Hi", f"/save {file}"])
    for command in ("/candidates", "/pick", "/retry", "/set", "/preset", "/history", "/reset", "/save", "/quit"):
        assert command in out
    assert err.count("written to") == 2
    assert file.read_text(encoding="utf-8").startswith("user: 안녕\n")


def test_bad_options_are_one_line(
    gpt2: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["--context", "1"], "--context is 1"),
        (["--history", "-1"], "--history is -1"),
        (["--preset", "none"], "there is no preset"),
        (["--format", "chat"], "no chat template"),
    ):
        assert main(["chat", gpt2, *words]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_invalid_bytes_from_a_pipe_do_no_harm(
    gpt2: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xec\x95 broken\n"), encoding="ascii"))
    assert main(["chat", gpt2, *SHORT]) == 0
    assert capsys.readouterr().out


def test_ctrl_c_at_the_prompt_leaves(
    gpt2: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", interrupted)
    assert main(["chat", gpt2, *SHORT]) == 0
    assert capsys.readouterr().out == "\n"


def test_a_terminal_is_told_of_models_that_learned_single_questions(
    gpt2: str, tiny_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", closed)
    for words, told in (([gpt2], True), ([gpt2, "--history", "0"], False), ([str(tiny_base("t5"))], False)):
        assert main(["chat", *words, *SHORT]) == 0
        assert ("--history 0 asks each by itself" in capsys.readouterr().err) is told


def read_until(terminal: int, text: str, seconds: float = 60) -> str:
    seen, end = b"", time.monotonic() + seconds
    while text not in seen.decode("utf-8", "replace"):
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"{text!r} never came; there was {seen!r}"
        seen += os.read(terminal, 4096)
    return seen.decode("utf-8", "replace")


@pytest.mark.slow
def test_it_leaves_a_terminal_cleanly(gpt2: str) -> None:
    ours, theirs = pty.openpty()
    words = [
        sys.executable,
        "-m",
        "src",
        "chat",
        gpt2,
        "--device",
        "cpu",
        "--max-new-tokens",
        "900",
        "--min-new-tokens",
        "900",
    ]
    process = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=REPO, start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    try:
        read_until(ours, "you> ")
        os.write(ours, b"\x04")  # Ctrl-D
        assert process.wait(timeout=60) == 0
        os.write(theirs, b"end-of-output")
        assert "Traceback" not in read_until(ours, "end-of-output")
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
