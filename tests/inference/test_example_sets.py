"""Prompts from texts, files and datasets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.datamodules import ChatbotDataModule, DialogSumDataModule
from src.errors import ParleyError
from src.inference.examples import from_dataset, from_file, from_text

KOREAN = "Q,A,label\n" + "".join(f'"질문, {n}?",답 {n}.,0\n질문 둘 {n},"답 ""{n}""",1\n' for n in range(30))


def test_one_text() -> None:
    assert from_text("  a {b}\n").examples[0].prompt == "  a {b}\n"
    asked = from_text("A: {hi}", "summarize")
    assert asked.examples[0].prompt == "Summarize the following conversation.\n\nA: {hi}\n\nSummary: "
    assert asked.trained
    with pytest.raises(ParleyError, match="unknown template"):
        from_text("A", "sumarize")
    with pytest.raises(ParleyError, match="malformed"):
        from_text("A", "{")
    assert from_text("A", r"Dialogue:\n{x}\n").examples[0].prompt == "Dialogue:\nA\n"
    for text, template, where in (("x\udcff", None, "the prompt"), ("x", "\ud83d{x}", "the template")):
        with pytest.raises(ParleyError, match=f"{where} has half a character in it"):
            from_text(text, template)


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("첫째 \r\n\n<b>\u2028둘째</b>\n".encode())
    assert [(item.id, item.prompt) for item in from_file(file).examples] == [("1", "첫째 "), ("3", "<b>\u2028둘째</b>")]
    with pytest.raises(ParleyError, match="read line by line"):
        from_file(file, column="x")
    file.write_text("\n\n")
    with pytest.raises(ParleyError, match="has no prompts"):
        from_file(file)


def test_a_column_of_a_table(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"id": 7, "q": "a?", "r": ["x", "y"], "s": "z"}, {"q": "b?", "r": ["w"], "s": "v"}]
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    examples = from_file(file, column="q", references=["r", "s"], template="<{text}>").examples
    assert [(item.id, item.prompt, item.references) for item in examples] == [
        ("7", "<a?>", ["x", "y", "z"]),
        ("1", "<b?>", ["w", "v"]),
    ]
    for options, said in (({}, "no column 'prompt'"), ({"column": "q", "references": ["t"]}, "no column 't'")):
        with pytest.raises(ParleyError, match=said):
            from_file(file, **options)
    with pytest.raises(ParleyError, match="there is no file"):
        from_file(tmp_path / "none.csv")


def test_dialogsum_as_its_datamodule_gives_it(sample: Path) -> None:
    asked = from_dataset(str(sample), "test[:5]", template="flan")
    data = DialogSumDataModule("", path=str(sample), test_split="test[:5]", template="flan")
    assert asked.examples == data.examples("test")
    assert asked.trained
    assert not asked.turns
    assert len(from_dataset(str(sample), "train[10:14]").examples) == 4


@pytest.mark.parametrize("place", ["file", "directory"])
def test_chatbot_data_as_its_datamodule_deals_it(tmp_path: Path, place: str) -> None:
    file = tmp_path / "ChatbotData.csv"
    file.write_text(KOREAN, encoding="utf-8")
    path = str(file if place == "file" else tmp_path)
    data = ChatbotDataModule("", path=path, seed=3)
    parts = {part: from_dataset(path, part, seed=3) for part in ("train", "validation", "test")}
    for part, asked in parts.items():
        assert asked.examples == data.examples(part)
        assert asked.turns
    assert from_dataset(path, "train[:2]", seed=3).examples == parts["train"].examples[:2]


def test_data_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,label\nx,1\n", encoding="utf-8")
    with pytest.raises(ParleyError, match=r"columns label, text.*--input"):
        from_dataset(str(file), "test")
    with pytest.raises(ParleyError, match="there is no file or directory"):
        from_dataset(str(tmp_path / "none"), "test")


def test_conversations_are_asked_for_their_last_turn(tmp_path: Path) -> None:
    said = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See you")]
    rows = [{"id": "x", "messages": [{"role": role, "content": content} for role, content in said]}]
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = from_dataset(str(file), "test")
    [example] = found.examples
    assert (found.turns, found.trained, example.id) == (True, True, "x")
    assert [(turn.role, turn.content) for turn in example.turns] == said[:3]
    assert (example.target, example.references) == ("See you", ["See you"])
    with pytest.raises(ParleyError, match="take no template"):
        from_dataset(str(file), "test", template="flan")
