"""Encodes examples as token ids, and collates token ids to batches.

Prompt and target are encoded separately for every architecture; only the collator knows whether to join them, as for a
decoder-only model. A conversation is encoded as a pair: its last answer is the target, and all before it the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.contracts import IGNORE_INDEX, Batch, Example, Turn
from src.datamodules import formats
from src.datamodules.formats import Format, Prompt, TalkIds
from src.datamodules.turns import as_text, shortened
from src.models.endings import ending_ids
from src.models.texts import lost_characters, text_ids


class Encoded(TypedDict):
    """An example with its token ids, one row of the cache."""

    id: str
    prompt: str
    target: str
    references: list[str]
    prompt_ids: list[int]
    target_ids: list[int]
    prompt_truncated: bool
    target_truncated: bool
    prompt_lost: int  # characters of the untruncated text that the tokenizer does not know
    target_lost: int
    learned: list[list[int]]  # decoder-only: [start, stop] of each earlier answer in the prompt
    turns_dropped: int  # number of turns dropped from a conversation that was too long


def encode_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_encoder_decoder: bool,
    max_source_length: int,
    max_target_length: int,
    format: Format = "plain",
) -> list[Encoded]:
    """Tokenise prompts and targets.

    A target ends in EOS, truncated or not. Encoder-decoder: both get the tokenizer's own special tokens, and truncation
    keeps the beginning, as the published recipe does. Decoder-only: both are encoded in a format, and a long prompt
    loses its middle, so that an instruction at either end survives. A conversation that is too long loses its oldest
    turns, as a whole, and is truncated only if the last question alone is too long.

    Args:
        examples: What to encode.
        tokenizer: The model's tokenizer.
        is_encoder_decoder: Whether the model has an encoder.
        max_source_length: The most tokens of a prompt, special tokens included.
        max_target_length: The most tokens of a target, EOS included.
        format: How a decoder-only model is shown prompt and target; see `formats`.

    Returns:
        One row per example.
    """

    def encoded_prompts(prompts: Sequence[Prompt]) -> list[TalkIds]:
        if is_encoder_decoder:
            texts = [prompt if isinstance(prompt, str) else as_text(prompt) for prompt in prompts]
            return [TalkIds(ids, []) for ids in text_ids(texts, tokenizer, special=True)]
        if any(turn.role == "assistant" for prompt in prompts if not isinstance(prompt, str) for turn in prompt):
            return formats.talk_ids(prompts, tokenizer, format)
        return [TalkIds(ids, []) for ids in formats.prompt_ids(prompts, tokenizer, format)]

    fitted = _fitted(
        [example.turns or example.prompt for example in examples], encoded_prompts, tokenizer, max_source_length
    )
    talks = [prompt for prompt, _ in fitted]
    prompts = [talk if isinstance(talk, str) else as_text(talk) for talk in talks]
    prompt_ids = [whole.ids for _, whole in fitted]
    targets = [example.target for example in examples]
    eos = tokenizer.eos_token_id
    if is_encoder_decoder:
        target_ids = [_with_eos(ids, eos) for ids in text_ids(targets, tokenizer, special=True, target=True)]
        cut_prompts = [_cut_end(ids, max_source_length, set(tokenizer.all_special_ids)) for ids in prompt_ids]
    else:
        target_ids = formats.answer_ids(talks, targets, tokenizer, format)
        cut_prompts = [_cut_middle(ids, max_source_length) for ids in prompt_ids]
    # Counted on the bare texts: a template's own words could contain a lost character, and hide the loss.
    adds_words = format == "chat" or any(not isinstance(talk, str) for talk in talks)
    bare = (text_ids(prompts, tokenizer), text_ids(targets, tokenizer)) if adds_words else (prompt_ids, target_ids)
    closing = {*ending_ids(tokenizer), *tokenizer.all_special_ids}
    cut_targets = [_cut_end(ids, max_target_length, closing) for ids in target_ids]
    return [
        Encoded(
            id=example.id,
            prompt=prompt_text,
            target=example.target,
            references=example.references or [example.target],
            prompt_ids=prompt,
            target_ids=target,
            prompt_truncated=len(prompt) < len(whole_prompt.ids),
            target_truncated=len(target) < len(whole_target),
            prompt_lost=prompt_lost,
            target_lost=target_lost,
            learned=[list(span) for span in whole_prompt.answers] if len(prompt) == len(whole_prompt.ids) else [],
            turns_dropped=len(example.turns) - len(talk) if example.turns else 0,
        )
        for example, talk, whole_prompt, prompt_text, prompt, target, whole_target, prompt_lost, target_lost in zip(
            examples,
            talks,
            (whole for _, whole in fitted),
            prompts,
            cut_prompts,
            cut_targets,
            target_ids,
            lost_characters(prompts, bare[0], tokenizer),
            lost_characters(targets, bare[1], tokenizer),
            strict=True,
        )
    ]


def _fitted(
    prompts: Sequence[Prompt],
    encode: Callable[[Sequence[Prompt]], list[TalkIds]],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
) -> list[tuple[Prompt, TalkIds]]:
    """The latest turns of each conversation that fit, and their ids; the last question is always kept."""
    candidates = [
        [prompt] if isinstance(prompt, str) else _possible([prompt, *shortened(prompt)], tokenizer, limit)
        for prompt in prompts
    ]
    fitted = []
    for (first, *shorter), whole in zip(candidates, encode([first for first, *_ in candidates]), strict=True):
        best: tuple[Prompt, TalkIds] = first, whole
        if len(whole.ids) > limit:
            start, stop = 0, len(shorter)
            while start < stop:  # fewer turns are fewer tokens
                middle = (start + stop) // 2
                [ids] = encode([shorter[middle]])
                if len(ids.ids) <= limit or middle == len(shorter) - 1:
                    best, stop = (shorter[middle], ids), middle
                else:
                    start = middle + 1
        fitted.append(best)
    return fitted


def _possible(talks: list[Sequence[Turn]], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[Sequence[Turn]]:
    """Drop shortened conversations whose contents alone are too long; the shortest is always kept."""
    if len(talks) == 1:
        return talks
    tokens = [len(ids) for ids in text_ids([turn.content.strip() for turn in talks[0]], tokenizer)]
    has_system = talks[0][0].role == "system"
    kept = [tokens[len(tokens) - len(talk) + has_system :] for talk in talks]
    counts = [sum(tokens[:has_system]) + sum(each) for each in kept]
    return next((talks[number:] for number, count in enumerate(counts) if count <= limit), talks[-1:])


def _cut_end(ids: list[int], limit: int, closing: Set[int | None]) -> list[int]:
    """Truncate the end, but keep a closing token such as EOS."""
    if len(ids) <= limit:
        return ids
    return [*ids[: limit - 1], ids[-1]] if ids[-1] in closing else ids[:limit]


def _cut_middle(ids: list[int], limit: int) -> list[int]:
    if len(ids) <= limit:
        return ids
    tail = limit // 4
    return ids[: limit - tail] + ids[len(ids) - tail :]


def _with_eos(ids: list[int], eos: int | None) -> list[int]:
    """Add EOS to a target that lacks it: KoBART's tokenizer does not add it, and the model must learn to stop."""
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


@dataclass(frozen=True)
class Collator:
    """Pads encoded examples into a `Batch`.

    Args:
        pad_token_id: The padding of `input_ids`; any id will do, since the mask marks the padding.
        is_encoder_decoder: Whether the model has an encoder.
        learns_prompts: Decoder-only: learn the prompt's tokens too.
        pad_to_multiple_of: Round lengths up to a multiple, which is efficient on tensor cores.
    """

    pad_token_id: int
    is_encoder_decoder: bool
    learns_prompts: bool = False
    pad_to_multiple_of: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Make a batch from rows of `EncodedDataset`."""
        prompts = [row["prompt_ids"] for row in rows]
        if self.is_encoder_decoder:
            inputs = prompts
            labels = [nothing_of(row["target_ids"]) if row["is_filler"] else row["target_ids"] for row in rows]
        else:
            inputs = [row["prompt_ids"] + row["target_ids"] for row in rows]
            labels = [
                nothing_of(ids) if row["is_filler"] else joined_labels(row, learns_prompts=self.learns_prompts)
                for ids, row in zip(inputs, rows, strict=True)
            ]
        input_ids, attention_mask = pad(inputs, self.pad_token_id, self.pad_to_multiple_of)
        if self.is_encoder_decoder:
            prompt_ids, prompt_attention_mask = input_ids, attention_mask
        else:
            prompt_ids, prompt_attention_mask = pad(prompts, self.pad_token_id, self.pad_to_multiple_of, left=True)
        padded = pad(labels, IGNORE_INDEX, self.pad_to_multiple_of)[0]
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=padded,
            learned=places_to_learn(padded, is_shifted=not self.is_encoder_decoder),
            prompt_ids=prompt_ids,
            prompt_attention_mask=prompt_attention_mask,
            id=[row["id"] for row in rows],
            prompt=[row["prompt"] for row in rows],
            references=[row["references"] for row in rows],
            is_filler=[row["is_filler"] for row in rows],
            index=[row["index"] for row in rows],
        )


def places_to_learn(labels: Tensor, *, is_shifted: bool) -> Tensor:
    """Rows and columns of the positions that predict a label, (2, tokens).

    Args:
        labels: (batch, time), -100 where there is nothing to learn.
        is_shifted: Whether a label is predicted by the position before it, as in a decoder-only model.
    """
    return torch.stack(torch.nonzero(labels[:, int(is_shifted) :] != IGNORE_INDEX, as_tuple=True))


def nothing_of(ids: Sequence[int]) -> list[int]:
    """Labels of -100, one for each id."""
    return [IGNORE_INDEX] * len(ids)


def joined_labels(row: Mapping[str, Any], *, learns_prompts: bool) -> list[int]:
    """Labels of prompt and target in one sequence: the target and the earlier answers in the prompt are learned.

    Args:
        row: A row of `EncodedDataset`.
        learns_prompts: Learn the whole prompt, except its first token.
    """
    prompt, target = row["prompt_ids"], row["target_ids"]
    if learns_prompts:
        return [IGNORE_INDEX, *[*prompt, *target][1:]]
    labels = nothing_of(prompt)
    for start, stop in row["learned"]:
        labels[start:stop] = prompt[start:stop]
    return [*labels, *target]


def pad(sequences: list[list[int]], value: int, multiple_of: int = 1, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Pad sequences into a tensor, with a mask: both (sequences, longest length, rounded up).

    Args:
        sequences: Token ids or labels.
        value: The padding value.
        multiple_of: Round the length up to a multiple.
        left: Pad on the left instead of the right.
    """
    longest = max(map(len, sequences))
    width = -(-longest // multiple_of) * multiple_of
    ids = torch.full((len(sequences), width), value, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        span = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[row, span] = torch.tensor(sequence, dtype=torch.long)
        mask[row, span] = 1
    return ids, mask
