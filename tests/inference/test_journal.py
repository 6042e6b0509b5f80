"""Answers that are taken up again where they were stopped, on whatever batch that was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.cli import main
from src.errors import ParleyError
from src.inference import answers
from src.inference.answers import answer_all
from src.inference.journal import AnswerJournal
from src.models.generation_options import GenerationOptions

PROMPTS = [[5, 6, 7], [8, 9], [5], [7, 7, 7, 7], [9, 8, 7]]
OPTIONS = GenerationOptions(max_new_tokens=4, do_sample=True, seed=3, num_return_sequences=2)


@pytest.fixture
def model(finished):
    return finished("gpt2")


def stop_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the process end while it generates the batch after so many."""
    generate, made = answers.generate_text, []

    def until(*args, **kwargs):
        if len(made) == batches:
            raise KeyboardInterrupt
        made.append(None)
        return generate(*args, **kwargs)

    monkeypatch.setattr(answers, "generate_text", until)


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_it_goes_on_to_the_same_answers(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int):
    expected = answer_all(model, PROMPTS, OPTIONS, batch_size=2)
    output = tmp_path / "out.jsonl"
    with monkeypatch.context() as patched:
        stop_after(stop, patched)
        journal = AnswerJournal(output, model, PROMPTS, OPTIONS)
        with pytest.raises(KeyboardInterrupt):
            answer_all(model, PROMPTS, OPTIONS, batch_size=2, journal=journal)
    again = AnswerJournal(output, model, PROMPTS, OPTIONS)
    assert len(again.answers) == 2 * stop
    with monkeypatch.context() as patched:
        stop_after(3 - stop, patched)  # not one batch more than what is left
        assert answer_all(model, PROMPTS, OPTIONS, batch_size=2, journal=again) == expected
    again.finish()
    assert not list(tmp_path.iterdir())


def test_half_a_line_is_forgotten_and_another_command_is_refused(model, tmp_path: Path):
    output = tmp_path / "out.jsonl"
    AnswerJournal(output, model, PROMPTS, OPTIONS).add([3, 0], [["a", "b"], ["c\u2028", "d\n"]])
    file = tmp_path / "out.jsonl.part"
    whole = file.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        file.write_bytes(whole + whole.splitlines(keepends=True)[-1][:cut])
        assert AnswerJournal(output, model, PROMPTS, OPTIONS).answers == {3: ["a", "b"], 0: ["c\u2028", "d\n"]}
        assert file.read_bytes() == whole
    for prompts, options in ((PROMPTS[:4], OPTIONS), (PROMPTS, GenerationOptions(max_new_tokens=5))):
        with pytest.raises(ParleyError, match="of another model, other prompts or other options"):
            AnswerJournal(output, model, prompts, options)
    file.write_bytes(whole.replace(b'{"numbers"', b'{numbers"'))
    with pytest.raises(ParleyError, match="is damaged"):
        AnswerJournal(output, model, PROMPTS, OPTIONS)


def test_the_command_goes_on(tiny_base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("".join(f"Question {number} is {'so ' * number}?\n" for number in range(7)))
    words = ["generate", str(tiny_base("gpt2")), "--input", "in.txt", "--batch-size", "2", "--max-new-tokens", "5"]
    assert main([*words, "--output", "whole.jsonl"]) == 0
    Path("cut.jsonl").write_text("what was here before\n")
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        with pytest.raises(KeyboardInterrupt):
            main([*words, "--output", "cut.jsonl"])
    assert Path("cut.jsonl").read_text() == "what was here before\n"
    assert len(Path("cut.jsonl.part").read_text().splitlines()) == 3
    assert main([*words, "--output", "cut.jsonl"]) == 0
    assert Path("cut.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert [json.loads(line)["id"] for line in Path("cut.jsonl").read_text().splitlines()] == [
        str(n) for n in range(1, 8)
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cut.jsonl", "in.txt", "whole.jsonl"]
