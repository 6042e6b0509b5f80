"""Examples to token ids, and token ids to batches.

Prompt and target are encoded apart, whatever the architecture; only the collator knows how an encoder-decoder and a
decoder-only model want them joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.contracts import IGNORE_INDEX, Batch, Example


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


def encode_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_encoder_decoder: bool,
    max_source_length: int,
    max_target_length: int,
) -> list[Encoded]:
    """Tokenise prompts and targets.

    Encoder-decoder: both get the tokenizer's own special tokens, and truncation keeps the beginning, as the published
    recipe does. Decoder-only: the prompt gets what the tokenizer puts before a text, the target an EOS, and a long
    prompt loses its middle, so that an instruction at either end survives.

    Args:
        examples: What to encode.
        tokenizer: The model's.
        is_encoder_decoder: How the model wants it.
        max_source_length: Tokens of a prompt at most, special tokens included.
        max_target_length: Tokens of a target at most, EOS included.

    Returns:
        One row an example.
    """
    prompts = [example.prompt for example in examples]
    targets = [example.target for example in examples]
    if is_encoder_decoder:
        prompt_ids = tokenizer(prompts, truncation=False, verbose=False)["input_ids"]
        target_ids = tokenizer(text_target=targets, truncation=False, verbose=False)["input_ids"]
        special = tokenizer.num_special_tokens_to_add(pair=False)
        cut_prompts = [_cut_end(ids, max_source_length, special) for ids in prompt_ids]
        cut_targets = [_cut_end(ids, max_target_length, special) for ids in target_ids]
    else:
        eos = tokenizer.eos_token_id
        prompt_ids = [_without_trailing_eos(ids, eos) for ids in tokenizer(prompts, verbose=False)["input_ids"]]
        target_ids = [[*ids, eos] for ids in tokenizer(targets, add_special_tokens=False, verbose=False)["input_ids"]]
        cut_prompts = [_cut_middle(ids, max_source_length) for ids in prompt_ids]
        cut_targets = [_cut_end(ids, max_target_length, 1) for ids in target_ids]
    return [
        Encoded(
            id=example.id,
            prompt=example.prompt,
            target=example.target,
            references=example.references or [example.target],
            prompt_ids=prompt,
            target_ids=target,
            prompt_truncated=len(prompt) < len(whole_prompt),
            target_truncated=len(target) < len(whole_target),
        )
        for example, prompt, target, whole_prompt, whole_target in zip(
            examples, cut_prompts, cut_targets, prompt_ids, target_ids, strict=True
        )
    ]


def _cut_end(ids: list[int], limit: int, special: int) -> list[int]:
    """Keep the beginning and the closing special token (EOS or `</s>`)."""
    if len(ids) <= limit:
        return ids
    return ids[:limit] if special == 0 else [*ids[: limit - 1], ids[-1]]


def _cut_middle(ids: list[int], limit: int) -> list[int]:
    if len(ids) <= limit:
        return ids
    tail = limit // 4
    return ids[: limit - tail] + ids[len(ids) - tail :]


def _without_trailing_eos(ids: list[int], eos: int | None) -> list[int]:
    return ids[:-1] if ids and ids[-1] == eos else ids


@dataclass(frozen=True)
class Collator:
    """Pads encoded examples into a `Batch`.

    Args:
        pad_token_id: Fills `input_ids`; the mask says where, so any id does.
        is_encoder_decoder: How the model wants prompt and target.
        pad_to_multiple_of: Round lengths up, which tensor cores like.
    """

    pad_token_id: int
    is_encoder_decoder: bool
    pad_to_multiple_of: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Make a batch of rows as `EncodedDataset` gives them."""
        prompts = [row["prompt_ids"] for row in rows]
        targets = [[IGNORE_INDEX] * len(row["target_ids"]) if row["is_filler"] else row["target_ids"] for row in rows]
        if self.is_encoder_decoder:
            inputs, labels = prompts, targets
        else:
            inputs = [row["prompt_ids"] + row["target_ids"] for row in rows]
            labels = [[IGNORE_INDEX] * len(prompt) + target for prompt, target in zip(prompts, targets, strict=True)]
        input_ids, attention_mask = self._pad(inputs, self.pad_token_id)
        if self.is_encoder_decoder:
            prompt_ids, prompt_attention_mask = input_ids, attention_mask
        else:
            prompt_ids, prompt_attention_mask = self._pad(prompts, self.pad_token_id, left=True)
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=self._pad(labels, IGNORE_INDEX)[0],
            prompt_ids=prompt_ids,
            prompt_attention_mask=prompt_attention_mask,
            id=[row["id"] for row in rows],
            prompt=[row["prompt"] for row in rows],
            references=[row["references"] for row in rows],
            is_filler=[row["is_filler"] for row in rows],
            index=[row["index"] for row in rows],
        )

    def _pad(self, sequences: list[list[int]], value: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
        longest = max(map(len, sequences))
        width = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        ids = torch.full((len(sequences), width), value, dtype=torch.long)
        mask = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            span = slice(width - len(sequence), width) if left else slice(0, len(sequence))
            ids[row, span] = torch.tensor(sequence, dtype=torch.long)
            mask[row, span] = 1
        return ids, mask
