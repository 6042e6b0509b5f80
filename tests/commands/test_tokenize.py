"""`parley tokenize` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from src.cli import main
from src.inference.tokens import tokenise

TEXT = "Ann: 안녕, tickets?"


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["tokenize", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("architecture", ["t5", "bart", "gpt2", "llama"])
def test_tokens_are_those_of_transformers(
    architecture: str, tiny_base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(tiny_base(architecture))
    [found] = asked(capsys, name, TEXT, "</s>")
    stock = AutoTokenizer.from_pretrained(name)
    text, closing = found["texts"]
    assert [token["id"] for token in text["tokens"]] == stock(TEXT).input_ids
    assert [token["token"] for token in text["tokens"]] == stock.convert_ids_to_tokens(stock(TEXT).input_ids)
    assert [token["special"] for token in text["tokens"]] == [
        id in stock.all_special_ids for id in stock(TEXT).input_ids
    ]
    assert found["vocabulary"] == len(stock)
    assert (text["back"], text["lost"]) == (stock.decode(stock(TEXT).input_ids, skip_special_tokens=True), 0)
    assert "".join(closing["back"].split()) == "</s>", "the name of a token in a text is text"
    plain = asked(capsys, name, TEXT, "--no-special")[0]["texts"][0]["tokens"]
    assert [token["id"] for token in plain] == stock(TEXT, add_special_tokens=False).input_ids


def test_what_a_tokenizer_does_not_know_is_said_to_be_lost() -> None:
    words = Tokenizer(models.WordLevel({"hello": 0, "<unk>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    found = [tokenise(text, tokenizer) for text in ("hello hello", "hello  hello", "hello 안녕")]
    assert [text.survived for text in found] == ["exactly", "but for blanks or case", "2 characters are lost"]
    assert [token.id for token in found[2].tokens] == [0, 1]


def test_a_token_is_found_by_id_and_by_spelling_beside_another_model(
    tiny_base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(tiny_base(architecture)) for architecture in ("t5", "gpt2")]
    tokenizers = [AutoTokenizer.from_pretrained(name) for name in names]
    found = asked(capsys, names[0], "--beside", names[1], "--look-up", "5", "--look-up", "</s>")
    for one, tokenizer in zip(found, tokenizers, strict=True):
        by_id, by_name = one["looked_up"]
        assert (by_id["id"], by_id["token"]) == (5, tokenizer.convert_ids_to_tokens(5))
        assert (by_name["id"], by_name["special"]) == (tokenizer.convert_tokens_to_ids("</s>"), True)
        assert one["texts"] == []


def test_a_table_shows_every_token_and_what_came_back(
    tiny_base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(tiny_base("gpt2"))
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo tickets\n")
    assert main(["tokenize", name, "--input", str(lines), "--beside", str(tiny_base("t5"))]) == 0
    shown = capsys.readouterr().out
    for text in ("one", "two tickets"):
        assert f"{text!r}" in shown
    assert shown.count("(exactly).") == 4
    assert "Tokens of each:" in shown


def test_a_checkpoint_has_its_models_tokenizer(
    checkpoint: Path, tiny_base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    name = str(tiny_base("gpt2"))
    ours, theirs = asked(capsys, str(checkpoint), TEXT), asked(capsys, name, TEXT)
    assert ours[0]["texts"] == theirs[0]["texts"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--look-up", "99999999"], "there is no token 99999999"),
        (["--look-up", "no such token at all"], "is not one token here"),
        (["text", "--input", "lines.txt"], "exclude each other"),
        (["--input", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, tiny_base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tokenize", str(tiny_base("t5")), *words]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
