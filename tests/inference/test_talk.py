"""A talk: what the model is shown of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.contracts import Turn
from src.errors import ParleyError
from src.inference.chat import Talk
from src.inference.loading import FinishedModel
from src.models.generation_options import GenerationOptions


@pytest.fixture
def talk(finished: Callable[[str], FinishedModel]) -> Callable[..., Talk]:
    def make(architecture: str = "gpt2", style: str = "published", **options: Any) -> Talk:
        decoding = GenerationOptions(max_new_tokens=6, do_sample=True, seed=1)
        return Talk(finished(architecture), style, **{"options": decoding, **options})

    return make


def ask(talk: Talk, question: str) -> tuple[str, list[int]]:
    pieces: list[str] = []
    forgotten: list[int] = []
    answer = talk.ask(question, write=pieces.append, forgot=forgotten.append).answer
    assert "".join(pieces) in (answer, "")
    return answer, forgotten


def shown(talk: Talk, question: str = "?") -> str:
    return talk.finished.tokenizer.decode(talk._prompt(question)[0])


def test_the_model_is_shown_what_was_said(talk: Callable[..., Talk]) -> None:
    mine = talk()
    first, _ = ask(mine, "안녕")
    second, _ = ask(mine, "뭐 해")
    assert mine.turns() == [
        Turn("user", "안녕"), Turn("assistant", first), Turn("user", "뭐 해"), Turn("assistant", second),
    ]  # fmt: skip
    assert shown(mine).startswith("<s>안녕</s><s>")
    assert shown(mine).endswith("</s><s>?</s><s>")
    mine.memory = 0
    assert shown(mine) == "<s>?</s><s>"
    mine.memory = 1
    assert shown(mine).startswith("<s>뭐 해</s><s>")
    mine.reset()
    mine.memory = None
    assert shown(mine) == "<s>?</s><s>"


@pytest.mark.parametrize(
    ("architecture", "style", "expected"),
    [
        ("gpt2", "published", "<s>Be kind.</s><s>?</s><s>"),
        ("gpt2", "plain", "Be kind.\n?\n"),
        ("bart", "plain", "<s>system: Be kind.\nuser: ?</s>"),
    ],
)
def test_the_system_speaks_first_in_every_format(
    talk: Callable[..., Talk], architecture: str, style: str, expected: str
) -> None:
    assert shown(talk(architecture, style, system="Be kind.")) == expected


def test_the_oldest_is_forgotten_first_and_said_once(talk: Callable[..., Talk]) -> None:
    mine = talk(context=60)
    told = [ask(mine, f"number {number}")[1] for number in range(8)]
    assert told[0] == []
    assert sum(map(sum, told)) == mine.forgotten > 2
    for number in range(mine.forgotten):
        assert f"number {number}<" not in shown(mine)
    assert "number 7<" in shown(mine)
    assert len(mine._prompt("?")[0]) + mine.options.max_new_tokens <= 60
    with pytest.raises(ParleyError, match="say it shorter"):
        ask(mine, "too long " * 30)
    assert len(mine.exchanges) == 8
    mine.options = GenerationOptions(max_new_tokens=60)
    with pytest.raises(ParleyError, match="max_new_tokens is 60"):
        ask(mine, "?")


def test_candidates(talk: Callable[..., Talk]) -> None:
    mine = talk(candidates=3)
    mine.ask("Hi", write=pytest.fail, forgot=pytest.fail)
    assert len(set(mine.exchanges[0].answers)) == 3
    mine.exchanges[0].chosen = 2
    assert mine.turns()[1].content == mine.exchanges[0].answers[2]
    mine.options = GenerationOptions(max_new_tokens=6)
    assert (mine.decoding.num_beams, mine.decoding.num_return_sequences) == (3, 3)
    assert len(mine.ask("Hi", write=pytest.fail, forgot=pytest.fail).answers) == 3


def test_a_seeded_talk_repeats_itself_but_draws_anew_for_each_answer(talk: Callable[..., Talk]) -> None:
    first, second = talk(memory=0), talk(memory=0)
    said = [ask(first, "Hi")[0] for _ in range(4)]
    assert said == [ask(second, "Hi")[0] for _ in range(4)]
    assert len(set(said)) > 1


@pytest.mark.parametrize("architecture", ["t5", "bart", "llama"])
def test_other_models_talk_too(talk: Callable[..., Talk], architecture: str) -> None:
    mine = talk(architecture, "published" if architecture == "llama" else "plain")
    for question in ("안녕", "Hi"):
        ask(mine, question)
    assert "안녕" in shown(mine)


def test_saving(talk: Callable[..., Talk], tmp_path: Path) -> None:
    mine = talk()
    answer, _ = ask(mine, "안녕 \u2028 <b>")
    mine.system = "짧게"
    mine.save(tmp_path / "talk.jsonl")
    lines = (tmp_path / "talk.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert [json.loads(line) for line in lines] == [
        {"role": "system", "content": "짧게"},
        {"role": "user", "content": "안녕 \u2028 <b>"},
        {"role": "assistant", "content": answer},
    ]
    assert "안녕" in lines[1]
    mine.save(tmp_path / "talk.txt")
    assert (tmp_path / "talk.txt").read_bytes().startswith("system: 짧게\nuser: 안녕".encode())
    with pytest.raises(ParleyError, match="cannot be written"):
        mine.save(tmp_path / "none" / "talk.txt")
