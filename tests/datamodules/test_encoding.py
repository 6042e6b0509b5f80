"""From examples to token ids to batches, on all four architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from src.contracts import IGNORE_INDEX, Batch, Example
from src.datamodules.encoding import Collator, Encoded, encode_examples
from src.models.loading import load_tokenizer

ENCODER_DECODERS, DECODERS = ("t5", "bart"), ("gpt2", "llama")
EXAMPLES = [
    Example("Ann: Hello, Ben.\n안녕! ☕ \n\nSummary: ", "Ann greets Ben.", ["Ann greets Ben.", "A greeting."], "one"),
    Example("Ben: " + "It is late, we should go home. " * 6, "Ben wants to go home because it is late.", [], "two"),
]
LONG = {"max_source_length": 1000, "max_target_length": 1000}


@pytest.fixture
def tokenizer(request: pytest.FixtureRequest, base: Callable[[str], str]) -> PreTrainedTokenizerBase:
    return load_tokenizer(base(request.param))


def encode(tokenizer: PreTrainedTokenizerBase, both: bool, **limits: int) -> list[Encoded]:
    return encode_examples(EXAMPLES, tokenizer, is_encoder_decoder=both, **{**LONG, **limits})


def rows(encoded: list[Encoded], filler: int | None = None) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(encoded):
        yield {**row, "is_filler": index == filler, "index": index}


@pytest.mark.parametrize("tokenizer", [*ENCODER_DECODERS, *DECODERS], indirect=True)
def test_texts_survive_and_targets_end_in_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    for row, example in zip(encode(tokenizer, tokenizer.num_special_tokens_to_add() > 0), EXAMPLES, strict=True):
        assert tokenizer.decode(row["prompt_ids"], skip_special_tokens=True) == example.prompt
        assert tokenizer.decode(row["target_ids"], skip_special_tokens=True) == example.target
        assert row["target_ids"][-1] == tokenizer.eos_token_id
        assert row["target_ids"].count(tokenizer.eos_token_id) == 1
        assert row["references"] == (example.references or [example.target])
        assert not row["prompt_truncated"]
        assert not row["target_truncated"]


@pytest.mark.parametrize("tokenizer", ENCODER_DECODERS, indirect=True)
def test_encoder_decoders_truncate_as_their_tokenizers_do(tokenizer: PreTrainedTokenizerBase) -> None:
    for limit in (3, 20, 31):
        for row, example in zip(
            encode(tokenizer, True, max_source_length=limit, max_target_length=limit), EXAMPLES, strict=True
        ):
            for what, text in (("prompt", example.prompt), ("target", example.target)):
                peer = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
                assert row[f"{what}_ids"] == peer
                assert row[f"{what}_truncated"] == (len(tokenizer(text)["input_ids"]) > limit)


@pytest.mark.parametrize("tokenizer", DECODERS, indirect=True)
def test_decoders_lose_a_prompts_middle_and_keep_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = encode(tokenizer, False)
    for row, full in zip(encode(tokenizer, False, max_source_length=20, max_target_length=6), whole, strict=True):
        assert len(row["prompt_ids"]) == 20
        assert row["prompt_ids"] == full["prompt_ids"][:15] + full["prompt_ids"][-5:]
        assert row["target_ids"] == [*full["target_ids"][:5], tokenizer.eos_token_id]
        assert row["prompt_truncated"]
        assert row["target_truncated"]


@pytest.mark.parametrize("tokenizer", ["t5"], indirect=True)
def test_a_tokenizer_that_closes_nothing_gets_eos_on_targets(tokenizer: PreTrainedTokenizerBase) -> None:
    """As KoBART's, which puts nothing around a text."""
    from tokenizers import processors

    closed = encode(tokenizer, True)
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    for row, before in zip(encode(tokenizer, True), closed, strict=True):
        assert row["target_ids"] == before["target_ids"]
        assert row["prompt_ids"] == before["prompt_ids"][:-1]
    for row in encode(tokenizer, True, max_source_length=7, max_target_length=7):
        assert len(row["prompt_ids"]) == len(row["target_ids"]) == 7
        assert row["target_ids"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("tokenizer", ["llama"], indirect=True)
def test_a_decoders_prompt_keeps_bos_and_drops_a_closing_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import processors

    bare = encode(tokenizer, False)
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    for row, before in zip(encode(tokenizer, False), bare, strict=True):
        assert row["prompt_ids"] == [tokenizer.bos_token_id, *before["prompt_ids"]]
        assert row["target_ids"] == before["target_ids"]


@pytest.mark.parametrize("tokenizer", ENCODER_DECODERS, indirect=True)
@pytest.mark.parametrize("multiple", [1, 8])
def test_batches_of_encoder_decoders_are_transformers_own(tokenizer: PreTrainedTokenizerBase, multiple: int) -> None:
    encoded = encode(tokenizer, True)
    batch = Collator(tokenizer.pad_token_id, is_encoder_decoder=True, pad_to_multiple_of=multiple)(list(rows(encoded)))
    peer = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=multiple)(
        [{"input_ids": row["prompt_ids"], "labels": row["target_ids"]} for row in encoded]
    )
    for name in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(batch[name], peer[name]), name  # type: ignore[literal-required]
    assert torch.equal(batch["prompt_ids"], batch["input_ids"])
    assert torch.equal(batch["prompt_attention_mask"], batch["attention_mask"])
    assert (batch["id"], batch["index"], batch["is_filler"]) == (["one", "two"], [0, 1], [False, False])
    assert batch["prompt"] == [example.prompt for example in EXAMPLES]
    assert batch["references"] == [["Ann greets Ben.", "A greeting."], [EXAMPLES[1].target]]


@pytest.mark.parametrize("tokenizer", DECODERS, indirect=True)
def test_batches_of_decoders_learn_from_targets_alone_and_generate_from_the_left(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoded = encode(tokenizer, False)
    batch: Batch = Collator(tokenizer.pad_token_id, is_encoder_decoder=False)(list(rows(encoded)))
    width = max(len(row["prompt_ids"]) + len(row["target_ids"]) for row in encoded)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, width)
    for number, row in enumerate(encoded):
        prompt, target = row["prompt_ids"], row["target_ids"]
        seen = batch["attention_mask"][number].bool()
        assert batch["input_ids"][number][seen].tolist() == prompt + target
        assert seen.tolist() == sorted(seen.tolist(), reverse=True), "padding is on the right"
        learned = batch["labels"][number] != IGNORE_INDEX
        assert batch["labels"][number][learned].tolist() == target
        assert learned.nonzero()[0].item() == len(prompt)
        asked = batch["prompt_attention_mask"][number].bool()
        assert batch["prompt_ids"][number][asked].tolist() == prompt
        assert asked.tolist() == sorted(asked.tolist()), "padding is on the left"
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()


@pytest.mark.parametrize("tokenizer", ["t5", "gpt2"], indirect=True)
def test_a_filler_has_a_prompt_and_nothing_to_learn(tokenizer: PreTrainedTokenizerBase) -> None:
    both = tokenizer.num_special_tokens_to_add() > 0
    encoded = encode(tokenizer, both)
    collator = Collator(tokenizer.pad_token_id, is_encoder_decoder=both)
    batch, plain = collator(list(rows(encoded, filler=1))), collator(list(rows(encoded)))
    assert (batch["labels"][1] == IGNORE_INDEX).all()
    assert torch.equal(batch["labels"][0], plain["labels"][0])
    assert torch.equal(batch["input_ids"], plain["input_ids"])
    assert batch["is_filler"] == [False, True]


@pytest.mark.parametrize("is_encoder_decoder", [False, True])
def test_what_is_learned_is_where_a_label_is_predicted(is_encoder_decoder):
    """The label at such a position is a token, and every token that is learned has one."""
    rows = [
        {
            "id": "",
            "prompt": "",
            "references": [""],
            "learned": [],
            "is_filler": number == 2,
            "index": number,
            "prompt_ids": list(range(5, 6 + number)),
            "target_ids": list(range(20, 23 - number)),
        }
        for number in range(3)
    ]
    batch = Collator(0, is_encoder_decoder=is_encoder_decoder)(rows)
    places, columns = batch["learned"]
    found = batch["labels"][places, columns + (not is_encoder_decoder)].tolist()
    assert found == [20, 21, 22, 20, 21]  # the third row is a filler
    assert batch["learned"].shape[1] == (batch["labels"] != -100).sum()
