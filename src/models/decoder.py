"""Token-by-token decoding of a batch from which ended rows are removed, with transformers' models and caches."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

from src.models.responses import Model, decoder_start, encode, output_head, position_ids, states_caught
from src.models.tying import T5_FAMILY, base_model


class Decoder:
    """A batch of unfinished rows with their key-value cache.

    Args:
        model: An encoder-decoder or decoder-only model in evaluation mode.
        query_ids: (rows, query time); left-padded for a decoder-only model.
        query_mask: (rows, query time).
        encoder_hidden: What `encode` returned for these queries; computed when left out.
        own_head: Have the model compute its head itself, in its own precision, as in `generate`; in float32 otherwise.
    """

    def __init__(
        self,
        model: Model,
        query_ids: Tensor,
        query_mask: Tensor,
        encoder_hidden: Tensor | None = None,
        *,
        own_head: bool = False,
    ) -> None:
        self.base, self.head, self.own_head = base_model(model), output_head(model), own_head
        self.is_encoder_decoder = bool(self.base.config.is_encoder_decoder)
        self.query_mask = query_mask
        self.positions: dict[str, Tensor] = {}
        self.answer_mask: Tensor | None = None  # only for an encoder-decoder whose rows began at different times
        if self.is_encoder_decoder:
            self.encoder_hidden: Any = encoder_hidden
            if encoder_hidden is None:
                self.encoder_hidden = encode(model, query_ids, query_mask)
            self.cache: Any = EncoderDecoderCache(
                DynamicCache(config=self.base.config), DynamicCache(config=self.base.config)
            )
            self.next_ids = query_ids.new_full((len(query_ids), 1), decoder_start(self.base))
        else:
            self.cache = DynamicCache(config=self.base.config)
            self.next_ids = query_ids
            self.positions = position_ids(self.base, query_mask)

    def next_logits(self) -> Tensor:
        """Logits of each row's next token, (rows, vocabulary), float32; the caller may change them in place."""
        if self.own_head:
            one = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.base.forward).parameters else {}
            return self.base(**self._inputs(), **one).logits[:, -1].to(torch.float32, copy=True)
        with states_caught(self.base) as caught:
            self.base(**self._inputs())
        return self.head(caught["head_input"][:, -1])

    def _inputs(self) -> dict[str, Any]:
        if self.is_encoder_decoder:
            inputs: dict[str, Any] = {
                "encoder_outputs": BaseModelOutput(last_hidden_state=self.encoder_hidden),
                "decoder_input_ids": self.next_ids,
            }
            inputs |= {} if self.answer_mask is None else {"decoder_attention_mask": self.answer_mask}
        else:
            inputs = {"input_ids": self.next_ids, **self.positions}
        return {**inputs, "attention_mask": self.query_mask, "past_key_values": self.cache, "use_cache": True}

    def multiply(self, times: int) -> None:
        """Repeat each row, to sample several answers after its prompt has been processed once."""
        self.cache.batch_repeat_interleave(times)
        self.query_mask, self.next_ids = (
            rows.repeat_interleave(times, dim=0) for rows in (self.query_mask, self.next_ids)
        )
        self.positions = {name: ids.repeat_interleave(times, dim=0) for name, ids in self.positions.items()}
        if self.is_encoder_decoder:
            self.encoder_hidden = self.encoder_hidden.repeat_interleave(times, dim=0)

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        """Append the next tokens of the rows that go on, and remove the others.

        Args:
            tokens: (alive,) the next tokens.
            alive: (alive,) the indices of these rows among the current rows.
        """
        if len(alive) < len(self.next_ids):
            self.query_mask = self.query_mask[alive]
            self.answer_mask = None if self.answer_mask is None else self.answer_mask[alive]
            self.cache.batch_select_indices(alive)
            self.positions = {name: ids[alive] for name, ids in self.positions.items()}
            if self.is_encoder_decoder:
                self.encoder_hidden = self.encoder_hidden[alive]
        self.next_ids = tokens.unsqueeze(-1)
        if self.answer_mask is not None:
            self.answer_mask = torch.cat([self.answer_mask, torch.ones_like(self.next_ids)], dim=1)
        if not self.is_encoder_decoder:
            self.query_mask = torch.cat([self.query_mask, torch.ones_like(self.next_ids)], dim=1)
            self.positions = {name: ids[:, -1:] + 1 for name, ids in self.positions.items()}

    @property
    def can_join(self) -> bool:
        """Whether rows that began at other times can join this batch.

        Caches are then padded on the left, so a token's position must come from position ids (decoder-only models that
        take `position_ids`) or relative distances (T5), not from its index in the cache (BART).
        """
        if self.is_encoder_decoder:
            return self.base.config.model_type in T5_FAMILY and all(map(_is_plain, self._own_layers()))
        return bool(self.positions) and all(map(_is_plain, self._own_layers()))

    def join(self, other: Decoder) -> None:
        """Append another decoder's rows to these; both must have advanced by at least one token, and `can_join`.

        Args:
            other: A decoder of the same model; not to be used afterwards.
        """
        both = (self, other)
        seen = max(one._seen for one in both)
        for mine, its in zip(self._own_layers(), other._own_layers(), strict=True):
            mine.keys, mine.values = (
                torch.cat([_pad(mine_part, seen, 2), _pad(its_part, seen, 2)])
                for mine_part, its_part in ((mine.keys, its.keys), (mine.values, its.values))
            )
        if self.is_encoder_decoder:
            time = max(one.query_mask.shape[1] for one in both)
            self.answer_mask = torch.cat([_pad(one._answers, seen + 1, 1) for one in both])
            self.query_mask = torch.cat([_pad(one.query_mask, time, 1, right=True) for one in both])
            self.encoder_hidden = torch.cat([_pad(one.encoder_hidden, time, 1, right=True) for one in both])
            crossed = (one.cache.cross_attention_cache.layers for one in both)
            for mine, its in zip(*crossed, strict=True):
                mine.keys, mine.values = (
                    torch.cat([_pad(mine_part, time, 2, right=True), _pad(its_part, time, 2, right=True)])
                    for mine_part, its_part in ((mine.keys, its.keys), (mine.values, its.values))
                )
        else:
            self.query_mask = torch.cat([_pad(one.query_mask, seen + 1, 1) for one in both])
            self.positions = {name: torch.cat([ids, other.positions[name]]) for name, ids in self.positions.items()}
        self.next_ids = torch.cat([one.next_ids for one in both])

    def trim(self) -> None:
        """Remove padding on the left that only rows that have ended needed."""
        mask = self.answer_mask if self.is_encoder_decoder else self.query_mask
        if mask is None or not self.can_join or not len(mask):
            return
        spare = int(mask.argmax(dim=1).min())  # positions before the first token of the longest row
        if not spare:
            return
        for layer in self._own_layers():
            layer.keys, layer.values = layer.keys[:, :, spare:], layer.values[:, :, spare:]
        if self.is_encoder_decoder:
            self.answer_mask = mask[:, spare:]
        else:
            self.query_mask = mask[:, spare:]

    @property
    def _seen(self) -> int:
        """The length of the self-attention cache."""
        return int(self._own_layers()[0].get_seq_length())

    @property
    def _answers(self) -> Tensor:
        """(rows, seen + 1) the mask of an encoder-decoder's answer tokens in the cache, including the next token."""
        if self.answer_mask is not None:
            return self.answer_mask
        return self.query_mask.new_ones((len(self.next_ids), self._seen + 1))

    def _own_layers(self) -> list[Any]:
        cache = self.cache.self_attention_cache if self.is_encoder_decoder else self.cache
        return list(cache.layers)


def takes_cache(model: Model) -> bool:
    """Whether a decoder-only model keeps keys and values, as those do not that carry a state along (Mamba)."""
    return "past_key_values" in inspect.signature(base_model(model).forward).parameters


def keeps_all_positions(model: Model) -> bool:
    """Whether a model's cache holds the keys and values of all positions, as not with a sliding window or a state."""
    return takes_cache(model) and all(map(_is_plain, DynamicCache(config=base_model(model).config).layers))


def _is_plain(layer: Any) -> bool:
    """Whether a cache's layer keeps all positions, as without a sliding window."""
    return type(layer) is DynamicLayer


def _pad(part: Tensor, size: int, dim: int, *, right: bool = False) -> Tensor:
    """Pad a tensor with zeros along a dimension, on the left or on the right."""
    lacking = size - part.shape[dim]
    if not lacking:
        return part
    shape = list(part.shape)
    shape[dim] = lacking
    empty = part.new_zeros(shape)
    return torch.cat([part, empty] if right else [empty, part], dim=dim)
