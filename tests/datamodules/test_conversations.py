"""Conversations: layouts, examples of both architectures, packing, formats of files."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.contracts import Turn
from src.datamodules import ChatbotDataModule, ConversationDataModule
from src.datamodules.encoding import Collator
from src.datamodules.packing import PackedCollator
from src.errors import ParleyError
from tests.datamodules.conftest import MESSAGES, SHORT


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoder_has_one_example_a_turn(conversations, architecture: str) -> None:
    data = conversations(architecture=architecture)
    data.setup("fit")
    rows = [data.datasets["train"][number] for number in range(len(data.datasets["train"]))]
    assert [row["id"] for row in rows] == ["0_1", "0_2", "0_3", "1_1"]
    assert [row["target"] for row in rows] == ["Ben: line 2.", "Dan speaks 4.", "line of turn 5.", "Ben."]
    assert rows[1]["prompt"] == (
        "system: Ann is kind.\nuser: Ann: line 1?\nassistant: Ben: line 2.\nuser: Cho: line 3  </s>"
    )
    assert rows[3]["prompt"] == "Ann?"
    for row in rows:
        assert row["prompt_ids"] == data.tokenizer(row["prompt"], split_special_tokens=True)["input_ids"]
        assert row["target_ids"][-1] == data.tokenizer.eos_token_id
    short = conversations(architecture=architecture, max_source_length=len(rows[1]["prompt_ids"]) - 1)
    short.setup("fit")
    assert short.datasets["train"][1]["prompt"] == "system: Ann is kind.\nuser: Cho: line 3  </s>"
    assert short.datasets["train"][1]["turns_dropped"] == 2


def test_layouts(conversations) -> None:
    sharegpt = [{"from": "human", "value": "Ann?"}, {"from": "gpt", "value": "Ben."}]
    expected = (Turn("user", "Ann?"), Turn("assistant", "Ben."))
    system = (Turn("system", "Be kind."), *expected)

    def read(row: dict[str, Any], **settings: Any) -> tuple[Turn, ...]:
        [example] = conversations([row], **settings).examples("train")
        return (*example.turns, Turn("assistant", example.target))

    assert read({"conversations": sharegpt}) == expected
    assert read({"talk": sharegpt, "messages": 7}, messages_column="talk") == expected
    assert read({"q": "Ann?", "a": "Ben."}, user_column="q", assistant_column="a") == expected
    assert read({"messages": SHORT}, system="Be kind.") == system
    assert read({"messages": SHORT, "s": "Be kind."}, system_column="s", system="Other.") == system
    assert read({"messages": SHORT, "s": None}, system_column="s", system="Be kind.") == system
    assert read({"messages": [{"role": "system", "content": "Be kind."}, *SHORT]}, system="Other.") == system
    lines = {"dialogue": "A: Ann\nwaits: here\nB: Ben.\nC: Bye"}
    assert read(lines, messages_column="dialogue", assistant_name="B") == (Turn("user", "Ann\nhere"), expected[1])
    with pytest.raises(ParleyError, match=r"line 1 has no column 'messages' or 'conversations'; its columns are q"):
        read({"q": "Ann?"})
    with pytest.raises(ParleyError, match="line 1, messages, message 1 has the role 'tool'"):
        read({"messages": [{"role": "tool", "content": "x"}]})
    for wrong, said in (
        ({"user_column": "q"}, "give user_column and assistant_column both"),
        ({"messages_column": "m", "user_column": "q", "assistant_column": "a"}, "leave one out"),
        ({"assistant_name": "B"}, "name the column"),
    ):
        with pytest.raises(ParleyError, match=said):
            conversations(**wrong)


def test_what_cannot_be_learned_from_is_counted(conversations, caplog: pytest.LogCaptureFixture) -> None:
    greeting, question = {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "And?"}
    empty = [{"role": "user", "content": " "}, *SHORT[1:]]
    talks = [SHORT, [greeting, *SHORT], [*SHORT, question], [question], [], empty]
    with caplog.at_level(logging.WARNING, logger="src"):
        examples = conversations(talks).examples("train")
    assert [(example.turns, example.target) for example in examples] == [((Turn("user", "Ann?"),), "Ben.")] * 3
    for said in (
        "2 of 6 conversations are dropped: the assistant answers nothing in them",
        "1 of 6 conversations begin with the assistant",
        "1 of 6 conversations end with the user",
        "dropped 1 of 4 rows with an empty cell",
    ):
        assert said in caplog.text
    with pytest.raises(ParleyError, match="in conversation '3' the assistant answers nothing"):
        conversations(talks, strict=True).examples("train")


def test_validation_has_a_history_once_with_all_its_answers(conversations) -> None:
    other = [SHORT[0], {"role": "assistant", "content": "Cho."}]
    data = conversations([SHORT, other, MESSAGES])
    assert [example.references for example in data.examples("validation")] == [["Ben.", "Cho."], ["line of turn 5."]]
    assert [example.target for example in data.examples("train")] == ["Ben.", "Cho.", "line of turn 5."]
    assert len(conversations([SHORT, other, MESSAGES], train_split="train[:1]").examples("train")) == 2


def test_a_pair_is_the_same_row_here_and_from_chatbotdata(conversations, base, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("Q,A,label\nAnn?,Ben.,0\n", encoding="utf-8")
    settings = {"cache_dir": str(tmp_path / "cache"), "train_split": "train", "max_target_length": 64}
    pair = ChatbotDataModule(
        base("gpt2"), path=str(table), validation_fraction=0, test_fraction=0, max_source_length=64, **settings
    )
    [theirs] = pair.encode(pair.examples("train"))
    talk = conversations([SHORT], max_source_length=64, max_target_length=64)
    [ours] = talk.encode(talk.examples("train"))
    assert ours == theirs


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_packed_conversation_has_the_loss_that_it_has_alone(conversations, architecture: str) -> None:
    from transformers import AutoModelForCausalLM

    data = conversations([MESSAGES, SHORT, MESSAGES[:5]], architecture=architecture)
    data.setup("fit")
    rows = [data.datasets["train"][number] for number in range(3)]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(data.model_name_or_path).eval()
    pad = data.tokenizer.pad_token_id

    def losses(batch: Any) -> torch.Tensor:
        positions = {"position_ids": batch["position_ids"]} if "position_ids" in batch else {}
        mask = {} if positions else {"attention_mask": batch["attention_mask"]}
        with torch.no_grad():
            logits = model(batch["input_ids"], **positions, **mask, use_cache=False).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        return torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")

    apart = torch.cat([losses(Collator(pad, False)([row])) for row in rows])
    together = losses(PackedCollator(pad)([{"examples": rows, "is_filler": False, "index": 0}]))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert len(apart) == sum(len(row["target_ids"]) + sum(b - a for a, b in row["learned"]) for row in rows)


def test_parquet_and_saved_by_datasets(conversations, base, tmp_path: Path) -> None:
    from datasets import Dataset

    rows = Dataset.from_list([{"messages": MESSAGES}, {"messages": SHORT}])
    rows.to_parquet(str(tmp_path / "talks.parquet"))
    rows.save_to_disk(str(tmp_path / "saved"))
    expected = conversations().examples("train")
    for place in ("talks.parquet", "saved"):
        data = ConversationDataModule(base("gpt2"), path=str(tmp_path / place))
        assert [(item.turns, item.target) for item in data.examples("train")] == [
            (item.turns, item.target) for item in expected
        ]


def test_the_corpus_becomes_messages() -> None:
    from scripts.fetch_chitchat import conversations as chats
    from scripts.fetch_chitchat import split_of

    said = [[("a", "Hi"), ("a", "you")], [("b", "Hello")], [("a", " ")]]
    messages = [[{"sender": sender, "text": text} for sender, text in group] for group in said]
    talks = list(chats({"x": {"messages": messages, "prompt": "Why?"}, "alone": {"messages": messages[:1]}}))
    assert talks == [
        {
            "id": "x",
            "topic": "Why?",
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "user", "content": "you"},
                {"role": "assistant", "content": "Hello"},
            ],
        }
    ]
    splits = [split_of(str(number)) for number in range(4000)]
    assert 0.87 < splits.count("train") / 4000 < 0.93
    assert json.dumps(splits[:3]) == json.dumps([split_of(str(number)) for number in range(3)])


def test_dialogsums_own_dialogues_are_conversations(dialogsum: Path, base: Callable[[str], str]) -> None:
    data = ConversationDataModule(
        base("gpt2"),
        path=str(dialogsum / "dialogsum.dev.jsonl"),
        messages_column="dialogue",
        assistant_name="Person2",
    )
    examples = data.examples("train")
    assert len(examples) > 490
    lines = (dialogsum / "dialogsum.dev.jsonl").read_text(encoding="utf-8").splitlines()
    said = {text for line in lines for text in json.loads(line)["dialogue"].split("\n")}
    for example in examples:
        assert example.turns[0].role == "user"
        assert example.turns[-1].role == "user"
        roles = [turn.role for turn in example.turns]
        assert all(one != other for one, other in itertools.pairwise(roles))
        for text in example.target.split("\n"):
            assert any(line.startswith("#Person2#:") and line.strip().endswith(text) for line in said)
