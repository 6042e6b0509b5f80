"""Which tokens of a talk are learned, at both borders of every turn, and which turns go where it is too long."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from src.contracts import IGNORE_INDEX, Turn
from src.datamodules.encoding import encode_examples, joined_labels
from src.datamodules.formats import prompt_ids, talk_ids
from src.errors import ParleyError
from tests.datamodules.conftest import MESSAGES

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BRACKETS = (  # its tokens reach over borders, nothing ends a turn, contents are trimmed, and it adds words of its own
    "{{ 'Today is Monday. ' }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim }}{% else %}{{ '[' + message['content'] | trim + ']' }}{% endif %}{% endfor %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
REWRITES = (
    "{% for message in messages %}{{ message['role'] + ': ' + ('<think></think>' if loop.last and message['role'] == "
    "'assistant' else '') + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture
def tokenizer_with(base: Callable[[str], str]) -> Callable[..., PreTrainedTokenizerBase]:
    def make(template: str, architecture: str = "gpt2") -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(base(architecture))
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = template
        return tokenizer

    return make


def learned_texts(row: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The runs of tokens that are learned."""
    ids, labels = row["prompt_ids"] + row["target_ids"], joined_labels(row, learns_prompts=False)
    assert all(label in (IGNORE_INDEX, id) for id, label in zip(ids, labels, strict=True))
    runs: list[list[int]] = []
    for place, label in enumerate(labels):
        if label == IGNORE_INDEX:
            continue
        if place == 0 or labels[place - 1] == IGNORE_INDEX:
            runs.append([])
        runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs]


def test_every_turn_of_the_assistants_is_learned_with_its_end_and_nothing_else(conversations) -> None:
    for format, end in (("published", "</s>"), ("plain", "</s>")):
        data = conversations(format=format)
        data.setup("fit")
        row = data.datasets["train"][0]
        answers = [message["content"] + end for message in MESSAGES if message["role"] == "assistant"]
        assert learned_texts(row, data.tokenizer) == answers
        text = data.tokenizer.decode(row["prompt_ids"])
        assert (
            text
            == {
                "published": "<s>Ann is kind.</s><s>Ann: line 1?</s><s>Ben: line 2.</s><s>Cho: line 3  </s></s>"
                "<s>Dan speaks 4.</s><s>Eve?</s><s>",
                "plain": "Ann is kind.\nAnn: line 1?\nBen: line 2.</s>Cho: line 3  </s>\nDan speaks 4.</s>Eve?\n",
            }[format]
        )
        # `</s>` in a text is text: of that id there are the turns' ends alone
        ids = row["prompt_ids"] + row["target_ids"]
        assert ids.count(data.tokenizer.convert_tokens_to_ids("</s>")) == {"published": 7, "plain": 3}[format]


SPECIAL = {  # of each family: what its template takes for tokens
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "gemma": ["<bos>", "<start_of_turn>", "<end_of_turn>"],
    "phi3": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"],
    "qwen2_5": ["<|im_start|>", "<|im_end|>"],
    "qwen3_instruct_2507": ["<|im_start|>", "<|im_end|>"],
    "lfm2": ["<|im_start|>", "<|im_end|>"],
    "cohere": ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"],
}


END = {
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "phi3": "<|end|>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    **dict.fromkeys(("qwen2_5", "qwen3_instruct_2507", "lfm2"), "<|im_end|>"),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_the_mask_is_trls(base: Callable[[str], str], name: str) -> None:
    from trl import chat_template_utils

    tokenizer = AutoTokenizer.from_pretrained(base("gpt2"))
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[name]})
    folder = Path(chat_template_utils.__file__).parent / "chat_templates"
    tokenizer.chat_template = (folder / f"{name}_training.jinja").read_text(encoding="utf-8")
    messages = [dict(message, content=message["content"].replace("  </s>", "")) for message in MESSAGES]
    messages = messages[1:] if name == "gemma" else messages
    theirs = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    turns = [Turn(**message) for message in messages]
    [row] = encoded([turns], tokenizer)
    ids = row["prompt_ids"] + row["target_ids"]
    assert ids == theirs["input_ids"][: len(ids)]
    mask = [int(label != IGNORE_INDEX) for label in joined_labels(row, learns_prompts=False)]
    mask += [0] * (len(theirs["input_ids"]) - len(ids))
    if name in ("llama3", "cohere"):
        assert mask == theirs["assistant_masks"]
    # Elsewhere TRL's also has the line end after the token that ends a turn (Qwen2.5's the one before the turn too, and
    # Phi-3's EOS after the last), which no model has to write. Nothing else is between the two.
    pairs = list(zip(theirs["input_ids"], mask, theirs["assistant_masks"], strict=True))
    assert all(their >= our for _, our, their in pairs)
    assert {tokenizer.decode([id]) for id, our, their in pairs if their > our} <= {"\n", "</s>"}
    assert learned_texts(row, tokenizer) == [
        message["content"] + END[name] for message in messages if message["role"] == "assistant"
    ]


def encoded(talks: Sequence[Sequence[Turn]], tokenizer: PreTrainedTokenizerBase, **limits: int) -> list[Any]:
    from src.contracts import Example

    examples = [Example("", talk[-1].content, turns=tuple(talk[:-1])) for talk in talks]
    limits = {"max_source_length": 10**6, "max_target_length": 10**6} | limits
    return encode_examples(examples, tokenizer, is_encoder_decoder=False, format="chat", **limits)


@pytest.mark.parametrize("template", [CHATML, BRACKETS], ids=["chatml", "brackets"])
def test_without_marks_the_mask_is_that_of_tokenised_prefixes(tokenizer_with, template: str) -> None:
    tokenizer = tokenizer_with(template)
    turns = [Turn(message["role"], message["content"].replace("</s>", "")) for message in MESSAGES]
    [row] = encoded([turns], tokenizer)
    ids, labels = row["prompt_ids"] + row["target_ids"], joined_labels(row, learns_prompts=False)
    expected = [IGNORE_INDEX] * len(ids)
    for place, turn in enumerate(turns):
        if turn.role == "assistant":
            start = len(prompt_ids([turns[:place]], tokenizer, "chat")[0])
            assert (
                ids[:start] == prompt_ids([turns[:place]], tokenizer, "chat")[0]
            )  # what chat asks is what was trained
            whole = tokenizer.apply_chat_template([vars(turn) for turn in turns[: place + 1]], tokenize=False)
            text = tokenizer.decode(ids[:start])
            answer = whole.rstrip()[len(text) :]
            stop = start
            while tokenizer.decode(ids[start:stop]) != answer:
                stop += 1
            expected[start:stop] = ids[start:stop]
    if template is BRACKETS:  # no token ends a turn there but the last, which gets EOS
        assert ids[-1] == tokenizer.eos_token_id
        expected[-1] = ids[-1]
    assert labels == expected


def test_a_template_that_shows_earlier_turns_otherwise_is_refused_in_training_only(tokenizer_with) -> None:
    tokenizer = tokenizer_with(REWRITES)
    turns = [Turn(message["role"], message["content"]) for message in MESSAGES]
    with pytest.raises(ParleyError, match="shows earlier turns otherwise once more is said"):
        talk_ids([turns[:-1]], tokenizer, "chat")
    [ids] = prompt_ids([turns[:-1]], tokenizer, "chat")
    assert tokenizer.decode(ids).startswith("system: Ann is kind.</s>user: Ann: line 1?</s>assistant: Ben: line 2.</s>")
    [row] = encoded([turns[:3]], tokenizer)  # a pair has no earlier turns
    assert learned_texts(row, tokenizer) == ["<think></think>Ben: line 2.</s>"]


def test_a_template_without_the_systems_role_says_so(tokenizer_with) -> None:
    with pytest.raises(ParleyError, match=r"chat template fails .*no system here"):
        encoded([[Turn(**message) for message in MESSAGES]], tokenizer_with(NO_SYSTEM))


def test_the_oldest_turns_go_first_and_are_counted(conversations, caplog: pytest.LogCaptureFixture) -> None:
    data = conversations()
    data.setup("fit")
    whole = data.datasets["train"][0]
    for limit, dropped in ((len(whole["prompt_ids"]), 0), (len(whole["prompt_ids"]) - 1, 2), (24, 4)):
        shorter = conversations(max_source_length=limit)
        with caplog.at_level(logging.WARNING, logger="src"):
            caplog.clear()
            shorter.setup("fit")
        row = shorter.datasets["train"][0]
        assert (row["turns_dropped"], row["prompt_truncated"]) == (dropped, False)
        assert len(row["prompt_ids"]) <= limit
        text = shorter.tokenizer.decode(row["prompt_ids"])
        assert text.startswith("<s>Ann is kind.</s>")
        assert ("line 1" in text, "line 3" in text) == (dropped == 0, dropped < 4)
        assert len(learned_texts(row, shorter.tokenizer)) == 3 - dropped // 2
        said = f"train: 1 of 2 talks lost their oldest turns, {dropped} in all, to have {limit} tokens"
        assert (said in caplog.text) == (dropped > 0)
    tiny = conversations(max_source_length=6)
    tiny.setup("fit")
    row = tiny.datasets["train"][0]
    assert (len(row["prompt_ids"]), row["prompt_truncated"], row["learned"]) == (6, True, [])


def test_many_turns_lose_as_few_as_need_be(base: Callable[[str], str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base("gpt2"))
    from src.contracts import Example

    turns = [Turn(("user", "assistant")[place % 2], f"line {place} of turn") for place in range(120)]
    whole = {  # by brute force
        place: len(prompt_ids([turns[place:-1]], tokenizer, "published")[0]) for place in range(0, 119, 2)
    }
    for limit in (20, 100, 333, 500):
        [row] = encode_examples(
            [Example("", turns[-1].content, turns=tuple(turns[:-1]))],
            tokenizer,
            is_encoder_decoder=False,
            max_source_length=limit,
            max_target_length=99,
            format="published",
        )
        assert row["turns_dropped"] == next(place for place, length in whole.items() if length <= limit)
