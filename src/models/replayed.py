"""Greedy search and sampling of transformers' `generate`, over the static decoder's steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput

from src.models.static_decoder import StaticDecoder

LOOK_EVERY = 8
"""Tokens after which to look whether all rows have ended: looking waits for the GPU."""


def replayed(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> GenerateDecoderOnlyOutput:
    """What `generate` calls to make tokens when given as its `custom_generate`: the same tokens as its own loop makes.

    Args:
        model: In evaluation mode, without an adapter that is not folded in.
        input_ids: (rows, time) an encoder-decoder's start, or the prompts; those of one prompt's answers are adjacent.
        logits_processor: Everything that changes logits, in transformers' order.
        stopping_criteria: What ends a row.
        generation_config: The options, prepared by `generate`.
        **model_kwargs: The model's other inputs, prepared by `generate`.

    Returns:
        With the sequences, (rows, time and new tokens), padded where a row has ended.
    """
    rows, start = input_ids.shape
    empty = input_ids.new_full((rows, _longest(generation_config, start)), int(generation_config.pad_token_id or 0))
    ids = torch.cat([input_ids, empty], dim=1)
    decoder = _decoder(model, input_ids, generation_config, model_kwargs)
    everybody = torch.arange(rows, device=ids.device)
    unfinished = torch.ones(rows, dtype=torch.bool, device=ids.device)
    length = torch.full((), start, device=ids.device)
    for place in range(start, ids.shape[1]):
        logits = decoder.next_logits()
        if place == start and len(logits) < rows:
            logits = logits.repeat_interleave(generation_config.num_return_sequences, dim=0)
            decoder.multiply(generation_config.num_return_sequences)
        scores = logits_processor(ids[:, :place], logits)  # type: ignore[arg-type]
        chosen = torch.multinomial(scores.softmax(-1), 1)[:, 0] if generation_config.do_sample else scores.argmax(-1)
        ids[:, place] = torch.where(unfinished, chosen, ids[:, place])
        length += unfinished.any()
        unfinished = unfinished & ~stopping_criteria(ids[:, : place + 1], scores)
        if (place - start + 1) % LOOK_EVERY == 0 and not bool(unfinished.any()):
            break
        if place + 1 < ids.shape[1]:
            decoder.advance(ids[:, place], everybody)
    return GenerateDecoderOnlyOutput(sequences=ids[:, : int(length)])  # type: ignore[arg-type]


def _decoder(
    model: PreTrainedModel, input_ids: Tensor, config: GenerationConfig, model_kwargs: dict[str, Any]
) -> StaticDecoder:
    """A decoder of the rows; of the prompts alone, for a decoder-only model, whose prompts are then read once."""
    longest = _longest(config, input_ids.shape[1])
    if model.config.is_encoder_decoder:
        hidden, mask = model_kwargs["encoder_outputs"].last_hidden_state, model_kwargs["attention_mask"]
        decoder = StaticDecoder(model, input_ids, mask, hidden, longest=longest, own_head=True)
        decoder.next_ids = input_ids
        return decoder
    mask = model_kwargs.get("attention_mask")  # `generate` leaves one without padding out
    mask = torch.ones_like(input_ids) if mask is None else mask
    each = config.num_return_sequences
    return StaticDecoder(model, input_ids[::each], mask[::each], longest=longest, own_head=True)


def _longest(config: GenerationConfig, start: int) -> int:
    assert config.max_length is not None
    return int(config.max_length) - start
