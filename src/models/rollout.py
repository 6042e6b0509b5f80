"""Sampling responses for PPO: batched, each row with a maximum of its own, no cost for rows that have ended.

transformers' `generate` keeps computing rows that have ended until the last one ends. With maxima drawn between 100 and
400 that is a large share of the work, so the loop is our own; its cache and logits processors are transformers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.modeling_outputs import BaseModelOutput

from src.errors import ParleyError
from src.models.autocast import cast_once
from src.models.logits import draw, row_seed
from src.models.lora import merged
from src.models.responses import Model, decoder_start, encode, output_head, position_ids, states_caught
from src.models.tying import base_model, positions
from src.ranges import COUNT, NOT_NEGATIVE, POSITIVE, PROBABILITY, refuse_outside
from src.rl.drawable import Drawable

RANGES = {
    "temperature": POSITIVE,
    "top_p": PROBABILITY,
    **dict.fromkeys(("top_k", "min_new_tokens"), NOT_NEGATIVE),
    **dict.fromkeys(("output_min_length", "output_max_length"), COUNT),
}


@dataclass(frozen=True)
class RolloutOptions:
    """How responses are sampled while PPO learns; the defaults are the published recipe's.

    Attributes:
        temperature: Divides the logits. The policy that is trained is the tempered one.
        top_k: Sample among the k likeliest tokens; 0 does not limit.
        top_p: Sample among the likeliest tokens that share this probability; 1 does not limit.
        min_new_tokens: Tokens before EOS is allowed.
        output_min_length: Each response's own maximum is drawn evenly from this …
        output_max_length: … to this, both included; EOS counts.
        bad_words: Texts that are never sampled, inside longer words neither; a special token such as `<unk>` is meant
            as the token.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 5
    output_min_length: int = 100
    output_max_length: int = 400
    bad_words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        refuse_outside(self, RANGES, "rollout.")
        if self.output_min_length > self.output_max_length:
            raise ParleyError(
                f"rollout.output_min_length is {self.output_min_length}; it must be at most output_max_length "
                f"({self.output_max_length})."
            )
        if not all(self.bad_words):
            raise ParleyError("rollout.bad_words must not hold an empty text; leave it out.")
        if self.min_new_tokens > self.output_max_length:
            raise ParleyError(
                f"rollout.min_new_tokens is {self.min_new_tokens} and output_max_length {self.output_max_length}: no "
                "response could ever end by itself; lower the one or raise the other."
            )

    def processors(self) -> LogitsProcessorList:
        """Temperature, top-k and top-p as transformers applies them."""
        chosen: list[Any] = []
        if self.temperature != 1:
            chosen.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            chosen.append(TopPLogitsWarper(self.top_p))
        return LogitsProcessorList(chosen)


class Responses(NamedTuple):
    """Sampled responses.

    Attributes:
        ids: (batch, time) padded on the right; EOS is kept.
        mask: (batch, time) 1 = response token, EOS included.
        has_eos: (batch,) false where a response was cut off.
        drawable: (batch, time) the tokens that each was drawn from.
    """

    ids: Tensor
    mask: Tensor
    has_eos: Tensor
    drawable: Drawable


@torch.no_grad()
def sample_responses(
    model: Model,
    query_ids: Tensor,
    query_mask: Tensor,
    options: RolloutOptions,
    *,
    eos_token_ids: list[int],
    pad_token_id: int,
    banned: LogitsProcessorList | None = None,
    seeds: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    encoder_hidden: Tensor | None = None,
) -> Responses:
    """Sample one response a query, with LoRA folded into the weights meanwhile; the model must be in evaluation mode.

    A response ends with EOS, at its own maximum, or where the model has no more positions.

    Args:
        model: An encoder-decoder or decoder-only model, with or without adapter.
        query_ids: (batch, query time), left-padded for a decoder-only model.
        query_mask: (batch, query time).
        options: How to sample.
        eos_token_ids: Each of these ends a response.
        pad_token_id: Fills `ids` where a response has ended.
        banned: Forbids tokens, given the responses so far: what is wanted of `token_rules` and `BannedTexts`.
        seeds: One a row, on which its maximum and its tokens depend, whatever else is in the batch; see `row_seeds`.
        generator: Draws the seeds where they are left out; a CPU generator, torch's own when left out.
        encoder_hidden: What `encode` gave for these queries; computed when left out.

    Returns:
        The responses, as long as the longest.

    Raises:
        ParleyError: A query leaves no position for a response, or the model's probabilities are not finite.
    """
    if seeds is None:
        seeds = torch.randint(2**63 - 1, (len(query_ids),), generator=generator).tolist()
    streams = [torch.Generator(query_ids.device).manual_seed(seed) for seed in seeds]
    limits = _draw_limits(base_model(model), query_mask, options, streams)
    batch, longest = len(query_ids), int(limits.max())
    ids = query_ids.new_full((batch, longest), pad_token_id)
    mask, has_eos = torch.zeros_like(ids), torch.zeros(batch, dtype=torch.bool, device=ids.device)
    eos = torch.tensor(eos_token_ids, device=ids.device, dtype=torch.long)
    banned, processors = LogitsProcessorList(banned or ()), options.processors()
    steps: list[tuple[Tensor, Drawable] | None] = []
    rows = torch.arange(batch, device=ids.device)
    with merged(model), cast_once(model, spare_head=True):
        decoder = _Decoder(model, query_ids, query_mask, encoder_hidden)
        for step in range(longest):
            logits, so_far = decoder.next_logits(), ids[rows, :step]
            if step < options.min_new_tokens:
                logits[:, eos] = -torch.inf
            logits = processors(so_far, banned(so_far, logits))  # type: ignore[arg-type]
            tokens = draw(_probabilities(logits), streams)
            is_restricted = step < options.min_new_tokens or banned or processors
            steps.append((rows, Drawable.of(logits > -torch.inf)) if is_restricted else None)
            ids[rows, step], mask[rows, step] = tokens, 1
            ended = torch.isin(tokens, eos)
            has_eos[rows] = ended
            alive = (~ended & (step + 1 < limits[rows])).nonzero().flatten()
            if not len(alive):
                break
            rows, streams = rows[alive], [streams[place] for place in alive.tolist()]
            decoder.advance(tokens[alive], alive)
    time = int(mask.sum(-1).max())
    drawable = Drawable.assemble(steps[:time], batch, logits.shape[-1], ids.device)
    return Responses(ids[:, :time], mask[:, :time], has_eos, drawable)


def row_seeds(seed: int, iteration: int, numbers: Sequence[int], answers: int = 1) -> list[int]:
    """Seeds for the answers to some prompts: the same ones in whichever batch and on whichever process a prompt is.

    Args:
        seed: The run's.
        iteration: Each has seeds of its own.
        numbers: The prompts' rows in their split.
        answers: To each prompt.
    """
    own = row_seed(seed, iteration, -1)
    return [row_seed(own, number, answer) for number in numbers for answer in range(answers)]


def _draw_limits(
    base: PreTrainedModel, query_mask: Tensor, options: RolloutOptions, streams: Sequence[torch.Generator]
) -> Tensor:
    """How long each response may become, shape (batch,)."""
    bounds = (options.output_min_length, options.output_max_length + 1)
    limits = torch.cat([torch.randint(*bounds, (1,), generator=stream, device=query_mask.device) for stream in streams])
    window = positions(base)
    if window is None:
        return limits
    taken = query_mask.sum(-1)
    room = torch.full_like(taken, window) if base.config.is_encoder_decoder else window - taken
    if (taken > window).any() or (room < 1).any():
        raise ParleyError(
            f"a prompt has {int(taken.max())} tokens and {base.name_or_path!r} takes {window}, its answer included; "
            "lower data.init_args.max_source_length."
        )
    return torch.minimum(limits, room)


def _probabilities(logits: Tensor) -> Tensor:
    """Of the next token, (rows, vocabulary)."""
    probabilities = logits.float().softmax(-1)
    if not torch.isfinite(probabilities).all():
        raise ParleyError(
            "the model gives probabilities that are not finite; lower the learning rate, or use precision 32-true."
        )
    return probabilities


class _Decoder:
    """The rows that have not ended, with their caches."""

    def __init__(self, model: Model, query_ids: Tensor, query_mask: Tensor, encoder_hidden: Tensor | None) -> None:
        self.base, self.head = base_model(model), output_head(model)
        self.is_encoder_decoder = bool(self.base.config.is_encoder_decoder)
        self.query_mask = query_mask
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
        """Logits of each row's next token, (rows, vocabulary), float32, to be changed at will."""
        if self.is_encoder_decoder:
            inputs: dict[str, Any] = {
                "encoder_outputs": BaseModelOutput(last_hidden_state=self.encoder_hidden),
                "decoder_input_ids": self.next_ids,
            }
        else:
            inputs = {"input_ids": self.next_ids, **self.positions}
        with states_caught(self.base) as caught:
            self.base(**inputs, attention_mask=self.query_mask, past_key_values=self.cache, use_cache=True)
        return self.head(caught["head_input"][:, -1])

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        """Take in the tokens of the rows that go on; forget the others.

        Args:
            tokens: (alive,).
            alive: (alive,) places among the present rows.
        """
        if len(alive) < len(self.next_ids):
            self.query_mask = self.query_mask[alive]
            self.cache.batch_select_indices(alive)
            if self.is_encoder_decoder:
                self.encoder_hidden = self.encoder_hidden[alive]
            else:
                self.positions = {name: ids[alive] for name, ids in self.positions.items()}
        self.next_ids = tokens.unsqueeze(-1)
        if not self.is_encoder_decoder:
            self.query_mask = torch.cat([self.query_mask, torch.ones_like(self.next_ids)], dim=1)
            self.positions = {name: ids[:, -1:] + 1 for name, ids in self.positions.items()}
