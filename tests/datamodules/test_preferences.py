"""Pairs of answers: what every layout says, and what a Module gets of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.contracts import Turn
from src.datamodules import DialogSumDataModule, PreferenceDataModule
from src.errors import ParleyError
from src.models.loading import load_tokenizer
from src.models.texts_to_classify import load_reader

HELLO = [{"role": "user", "content": "Hello?"}]
TALK = [*HELLO, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Who?"}]
GOOD, BAD = {"role": "assistant", "content": "Ann."}, {"role": "assistant", "content": "Go away."}
TEXT_PAIR = {"prompt": "Who?", "chosen": "Ann.", "rejected": "Go away."}
LAYOUTS: dict[str, tuple[dict[str, Any], tuple[Any, str, str]]] = {
    "texts": (TEXT_PAIR, ((), "Ann.", "Go away.")),
    "messages": ({"prompt": TALK, "chosen": [GOOD], "rejected": [BAD]}, (TALK, "Ann.", "Go away.")),
    "messages, prompt in both": ({"chosen": [*TALK, GOOD], "rejected": [*TALK, BAD]}, (TALK, "Ann.", "Go away.")),
    "messages, prompt as text too": (
        {"prompt": "Hello?", "chosen": [*HELLO, GOOD], "rejected": [*HELLO, BAD]},
        (HELLO, "Ann.", "Go away."),
    ),
    "messages, prompt as text only": (
        {"prompt": "Hello?", "chosen": [GOOD], "rejected": [BAD]},
        (HELLO, "Ann.", "Go away."),
    ),
    "hh-rlhf": (
        {
            "chosen": "\n\nHuman: Hello?\n\nAssistant: Yes.\n\nHuman: Who?\n\nAssistant: Ann.",
            "rejected": "\n\nHuman: Hello?\n\nAssistant: Yes.\n\nHuman: Who?\n\nAssistant: Go away.",
        },
        (TALK, "Ann.", "Go away."),
    ),
    "whole texts": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        ("The sky is", "blue.", "black."),
    ),
    "summarize_from_feedback": (
        {
            "info": {"post": "I left.", "title": "Left", "subreddit": "tales", "article": None},
            "summaries": [{"text": " Stays."}, {"text": " Leaves."}],
            "choice": 1,
        },
        ("SUBREDDIT: r/tales\nTITLE: Left\nPOST: I left.\nTL;DR:", "Leaves.", "Stays."),
    ),
    "summarize_from_feedback, news": (
        {
            "info": {"article": "It rained.", "title": "Rain"},
            "summaries": [{"text": "Rain."}, {"text": "Sun."}],
            "choice": 0,
        },
        ("TITLE: Rain\nARTICLE: It rained.\nTL;DR:", "Rain.", "Sun."),
    ),
}


@pytest.fixture
def module(tiny_base: Callable[..., Path], tmp_path: Path) -> Callable[..., PreferenceDataModule]:
    def make(rows: list[dict[str, Any]], architecture: str = "t5", **settings: Any) -> PreferenceDataModule:
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        name = str(tiny_base(architecture))
        return PreferenceDataModule(name, str(path), cache_dir=str(tmp_path / "cache"), **settings)

    return make


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Ann: {n // 2} is " + "very " * n, "chosen": f"Yes {n}.", "rejected": f"No, no, {n}."}
        for n in range(count)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_says_what_was_asked_and_which_answer_is_better(
    layout: str, module: Callable[..., PreferenceDataModule]
) -> None:
    row, (prompt, chosen, rejected) = LAYOUTS[layout]
    [pair] = module([row]).examples("train")
    assert (pair.chosen, pair.rejected) == (chosen, rejected)
    if isinstance(prompt, list):
        assert pair.turns == tuple(Turn(**turn) for turn in prompt)
        assert all(turn["content"] in pair.prompt for turn in prompt)
    elif prompt:
        assert (pair.prompt, pair.turns) == (prompt, ())


def test_trl_takes_the_prompt_out_of_both_talks_likewise(module: Callable[..., PreferenceDataModule]) -> None:
    from trl.data_utils import maybe_extract_prompt

    row = {"chosen": [*TALK, GOOD], "rejected": [*TALK, BAD]}
    theirs = maybe_extract_prompt(row)
    [pair] = module([row]).examples("train")
    assert [vars(turn) for turn in pair.turns] == theirs["prompt"]
    assert [pair.chosen] == [turn["content"] for turn in theirs["chosen"]]
    assert [pair.rejected] == [turn["content"] for turn in theirs["rejected"]]


@pytest.mark.parametrize("architecture", ["t5", "bart", "gpt2", "llama"])
def test_answers_follow_the_prompt_as_the_model_is_asked(
    architecture: str, module: Callable[..., PreferenceDataModule], tiny_base: Callable[..., Path]
) -> None:
    rows = pairs(3)
    data = module(rows, architecture, group_by_length=False, batch_size=3, template="Sum up: {prompt}")
    data.setup("validate")
    [batch] = list(data.val_dataloader())
    supervised = DialogSumDataModule(
        str(tiny_base(architecture)), data.path, template="Sum up: {dialogue}", cache_dir=str(data.cache_dir)
    )
    for side, offset in (("chosen", 0), ("rejected", 3)):
        table = [{"dialogue": row["prompt"], "summary": row[side], "id": str(n)} for n, row in enumerate(rows)]
        Path(data.path).write_text("".join(json.dumps(row) + "\n" for row in table))
        supervised.datasets.clear()
        supervised.setup("validate")
        for number, expected in enumerate(supervised.datasets["validation"].rows):
            mask = batch["prompt_attention_mask"][number].bool()
            assert batch["prompt_ids"][number][mask].tolist() == expected["prompt_ids"]
            mask = batch["answer_mask"][offset + number].bool()
            assert batch["answer_ids"][offset + number][mask].tolist() == expected["target_ids"]
            assert batch["answer_mask"][offset + number].diff().le(0).all(), "padded on the right"
    left = batch["prompt_attention_mask"].diff(dim=1)
    assert (left <= 0).all() if data.is_encoder_decoder else (left >= 0).all()
    assert batch["references"] == [[row["chosen"]] for row in rows]


@pytest.mark.parametrize("text", ["prompt_and_response", "response"])
def test_whole_texts_are_what_a_classifier_reads(
    text: str, module: Callable[..., PreferenceDataModule], tiny_base: Callable[..., Path]
) -> None:
    rows = [{**row, "margin": n / 2} for n, row in enumerate(pairs(4))]
    data = module(rows, "gpt2", group_by_length=False, batch_size=4, max_source_length=20, max_target_length=10)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=SimpleNamespace(reads="texts", text=text), world_size=1, is_global_zero=True, global_rank=0,
        accumulate_grad_batches=1, limit_val_batches=1.0, strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    data.setup("validate")
    [batch] = list(data.val_dataloader())
    reader = load_reader(str(tiny_base("gpt2")), max_length=30)
    first = [""] * 4 if text == "response" else [f"{row['prompt']} " for row in rows]
    texts = [before + row[side] for side in ("chosen", "rejected") for before, row in zip(first, rows, strict=True)]
    for ids, mask, expected in zip(batch["answer_ids"], batch["answer_mask"], reader.ids(texts), strict=True):
        assert ids[mask.bool()].tolist() == expected
        assert len(expected) <= 30
    assert batch["prompt_ids"].shape == (4, 0)
    assert torch.equal(batch["margin"], torch.tensor([0, 0.5, 1, 1.5]))


def test_pairs_of_one_prompt_stay_in_one_split(module: Callable[..., PreferenceDataModule]) -> None:
    rows = [{"prompt": f"p{n % 5}", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(20)]
    data = module(rows, train_split="train[:60%]", validation_split="train[60%:]")
    train, validation = (data.examples(part) for part in ("train", "validation"))
    assert (len(train), len(validation)) == (12, 8)
    assert {pair.prompt for pair in train}.isdisjoint(pair.prompt for pair in validation)


def test_batches_hold_pairs_of_similar_length_and_fillers_are_marked(
    module: Callable[..., PreferenceDataModule],
) -> None:
    padding = {}
    for grouped in (True, False):
        data = module(pairs(24), "gpt2", batch_size=4, group_by_length=grouped)
        data.setup("fit")
        batches = list(data.train_dataloader())
        padding[grouped] = sum(int((batch["prompt_attention_mask"] == 0).sum()) for batch in batches)
        assert sorted(name for batch in batches for name in batch["id"]) == sorted(map(str, range(24)))
    assert padding[True] < padding[False] / 2
    filler = data.collator(training=True)([{**data.datasets["train"][-1]}])
    assert filler["is_filler"] == [True]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "no column 'rejected'"),
        ({"chosen": "b", "rejected": "c"}, "has no prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1}, "margin is -1"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"}, "margin 'much' is not a number"),
        ({"prompt": "a", "chosen": "b", "rejected": "b "}, "is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "is empty"),
        ({"chosen": [*TALK, GOOD], "rejected": HELLO}, "must follow a prompt and differ in one answer"),
        ({"info": {}, "summaries": [{"text": "a"}], "choice": 1}, "summaries that cannot be read"),
    ],
)
def test_a_row_that_is_no_pair_is_one_line(
    row: dict[str, Any], said: str, module: Callable[..., PreferenceDataModule]
) -> None:
    with pytest.raises(ParleyError, match=said):
        module([row]).examples("train")


def test_equal_answers_are_dropped_and_counted_or_refused(
    module: Callable[..., PreferenceDataModule], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    monkeypatch.setattr(logging.getLogger("src"), "propagate", True)
    rows = [*pairs(3), {"prompt": "a", "chosen": "b", "rejected": "b "}]
    assert len(module(rows).examples("train")) == 3
    assert "dropped 1 of 4 pairs whose answers are equal (first: 3)" in caplog.text
    with pytest.raises(ParleyError, match="answers of pair '3' are equal"):
        module(rows, strict=True).examples("train")


def test_what_does_not_learn_from_pairs_is_refused(
    module: Callable[..., PreferenceDataModule], tiny_base: Callable[..., Path]
) -> None:
    data = module(pairs(2))
    with pytest.raises(ParleyError, match="SimpleNamespace learns right answers, and PreferenceDataModule has pairs"):
        data.refuse_misfits(SimpleNamespace())
    data.refuse_misfits(SimpleNamespace(reads="answers"))
    data.refuse_misfits(SimpleNamespace(minibatches_per_rollout=lambda prompts: prompts))
    single = DialogSumDataModule(str(tiny_base("t5")))
    with pytest.raises(ParleyError, match="learns from pairs of answers, and DialogSumDataModule has single ones"):
        single.refuse_misfits(SimpleNamespace(reads="texts"))


def test_a_name_of_a_token_in_an_answer_stays_text(
    module: Callable[..., PreferenceDataModule], tiny_base: Callable[..., Path]
) -> None:
    data = module([{"prompt": "a", "chosen": "b </s> c", "rejected": "d"}], "t5")
    data.setup("validate")
    tokenizer = load_tokenizer(str(tiny_base("t5")))
    [row] = data.datasets["validation"].rows
    assert row["chosen_ids"].count(tokenizer.eos_token_id) == 1
    assert row["chosen_ids"][-1] == tokenizer.eos_token_id
