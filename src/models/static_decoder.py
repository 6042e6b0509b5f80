"""Decoding over a cache of fixed size, in steps that a GPU replays instead of launching their kernels one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import EncoderDecoderCache, StaticCache

from src.errors import ParleyError
from src.models.adapter_checks import base_is_whole
from src.models.decoder import Decoder, keeps_all_positions
from src.models.responses import Model
from src.models.tying import base_model, positions

Engine = Literal["plain", "static"]
"""What computes tokens: a `Decoder` or a `StaticDecoder`."""


def refuse_engine(name: str, model: Model, *, in_shards: bool = False) -> None:
    """Refuse a model for which there is no `StaticDecoder`.

    Args:
        name: Of the setting.
        model: Any model.
        in_shards: Whether its weights are shared out over processes, whose exchange of them is in no graph.

    Raises:
        ParleyError: The model does not keep the keys and values of all positions, has an adapter that does not act in
            its layers alone, or attends by kernels that do not take masks; or it is in shards.
    """
    if in_shards:
        raise ParleyError(f"{name} is static, which is not for shards; use plain.")
    if not base_is_whole(model):
        raise ParleyError(f"{name} is static, which knows neither an adapter's virtual tokens nor aLoRA; use plain.")
    attention = base_model(model).config._attn_implementation
    if "flash" in str(attention):
        raise ParleyError(f"{name} is static, which {attention} does not serve; use plain, or attention by sdpa.")
    if not keeps_all_positions(model):
        raise ParleyError(
            f"{name} is static, and {base_model(model).config.model_type} does not attend to all positions "
            "(it has a sliding window or a state); use plain."
        )


class StaticDecoder(Decoder):
    """A `Decoder` whose cache is allocated once, for the longest answer.

    Prompts, and the first token, are processed as in `Decoder`. From then on the tensors of a step keep their addresses
    and shapes, so that on CUDA a step is captured once and then replayed as a graph. Elsewhere the same code runs as it
    is. Rows that have ended stay in the batch until half of it can be left out, so that a batch of n rows takes log2(n)
    graphs at most. A decoder's graphs are its own: when the next one begins, the weights may have changed.

    Args:
        model: An encoder-decoder or decoder-only model in evaluation mode.
        query_ids: (rows, query time); left-padded for a decoder-only model.
        query_mask: (rows, query time).
        encoder_hidden: What `encode` returned for these queries; computed when left out.
        longest: The tokens of the longest answer.
        own_head: As in `Decoder`.
    """

    def __init__(
        self,
        model: Model,
        query_ids: Tensor,
        query_mask: Tensor,
        encoder_hidden: Tensor | None = None,
        *,
        longest: int,
        own_head: bool = False,
    ) -> None:
        super().__init__(model, query_ids, query_mask, encoder_hidden, own_head=own_head)
        self._length = (1 if self.is_encoder_decoder else query_ids.shape[1]) + longest  # of the cache
        self._tokens = 0  # in the cache
        self._last_position = (positions(self.base) or self._length) - 1
        self._places: Tensor | None = None  # (alive,) of the unfinished rows in the batch, from the second token on
        self._captured: CapturedStep | None = None

    def next_logits(self) -> Tensor:
        """Logits of each unfinished row's next token, (rows, vocabulary), float32; the caller may change them."""
        compute = super().next_logits
        logits = compute() if self._captured is None else self._captured(compute)
        return logits if self._places is None else logits[self._places]

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        """Append the next tokens of the rows that go on, and forget the others.

        Args:
            tokens: (alive,) the next tokens.
            alive: (alive,) the indices of these rows among the unfinished rows.
        """
        self._tokens += self.next_ids.shape[1]
        if self._places is None:
            super().advance(tokens, alive)
            self._places = torch.arange(len(tokens), device=tokens.device)
            self._allocate(self._places)
            return
        self._places = self._places[alive]
        if 2 * len(tokens) <= len(self.next_ids):
            size = 1 << (len(tokens) - 1).bit_length()  # the next power of two
            self._allocate(torch.cat([self._places, self._places[:1].expand(size - len(tokens))]))
            self._places = torch.arange(len(tokens), device=tokens.device)
        self.next_ids[self._places, 0] = tokens
        for ids in self.positions.values():  # rows that have ended must not leave the window
            ids.copy_((ids + 1).clamp(max=self._last_position))

    def _allocate(self, rows: Tensor) -> None:
        """Give some rows of the batch, (size,), a cache and inputs of their own; their step is captured anew."""
        cache = StaticCache(config=self.base.config, max_cache_len=self._length)
        for place, layer in enumerate(self._own_layers()):
            cache.update(layer.keys[rows, :, : self._tokens], layer.values[rows, :, : self._tokens], place)
        self.next_ids, self.query_mask = self.next_ids[rows], self.query_mask[rows]
        if self.is_encoder_decoder:
            crossed = self.cache.cross_attention_cache
            crossed.batch_select_indices(rows)
            self.cache = EncoderDecoderCache(cache, crossed)
            self.encoder_hidden = self.encoder_hidden[rows]
            self.answer_mask = self.query_mask.new_ones(len(rows), self._length)  # what is to come causality hides
        else:
            self.cache = cache
            self.positions = {name: ids[rows] for name, ids in self.positions.items()}
            to_come = self.query_mask.new_ones(len(rows), self._length - self.query_mask.shape[1])
            self.query_mask = torch.cat([self.query_mask, to_come], dim=1)
        self._captured = self._new_capture()

    def _new_capture(self) -> CapturedStep | None:
        """What computes a step several times over the same tensors; None to compute it as it is."""
        return CapturedStep(self.next_ids.device) if self.next_ids.is_cuda else None


class CapturedStep:
    """A computation, the same at every call, that CUDA replays from the third call on: `torch.cuda.CUDAGraph`.

    It must read and write tensors at addresses that do not change, in shapes that do not change, and must not wait for
    the GPU. The first call runs it on a stream of its own, as a capture demands
    (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs); the second captures it. All captures of a
    process take their memory from one pool, and are to be replayed on one stream. `torch.cuda.graph` is not used: it
    gives all memory that torch has in reserve back to the GPU, and training, which is next, has to ask for it again.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_warm = False

    def __call__(self, compute: Callable[[], Tensor]) -> Tensor:
        """The computation's result; in the same memory at every call from the second on.

        Args:
            compute: The computation. It is not kept, for it may hold what holds this.
        """
        with torch.cuda.device(self._device):
            if not self._is_warm:
                self._is_warm = True
                with _on(_captures(self._device)[0]):
                    return compute()
            if self._graph is None:
                stream, keeper = _captures(self._device)
                graph = torch.cuda.CUDAGraph()
                with _uncached_autocast(), _on(stream), _capturing(graph, pool=keeper.pool()):
                    self._result = compute()
                self._graph = graph
            self._graph.replay()
            return self._result


@cache
def _captures(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """The stream of a GPU's captures, and a graph of next to nothing: as long as it is there, so is its memory pool.

    Args:
        device: The GPU, which is the current one.
    """
    stream, keeper = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with _on(stream), _capturing(keeper):
        torch.zeros(1, device=device)
    return stream, keeper


@contextmanager
def _on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Within the block work is put on a stream, behind what is on the current one, which then goes on behind it."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, **kwargs: Any) -> Iterator[None]:
    """Within the block work is captured, while other threads may use CUDA, as the one that pins batches does."""
    graph.capture_begin(capture_error_mode="thread_local", **kwargs)
    try:
        yield
    finally:
        graph.capture_end()


@contextmanager
def _uncached_autocast() -> Iterator[None]:
    """Within the block autocast keeps no casts: those of a capture are in its own memory, and not computed yet."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)
