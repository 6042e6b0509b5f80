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
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from src.errors import ParleyError
from src.models.autocast import cast_once
from src.models.decoder import Decoder
from src.models.logits import draw, row_seed
from src.models.lora import merged
from src.models.responses import Model
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
    answers: int = 1,
) -> Responses:
    """Sample responses to queries, each of which is read once; the model must be in evaluation mode.

    An adapter is folded into the weights meanwhile.

    A response ends with EOS, at its own maximum, or where the model has no more positions.

    Args:
        model: An encoder-decoder or decoder-only model, with or without adapter.
        query_ids: (queries, query time), left-padded for a decoder-only model.
        query_mask: (queries, query time).
        options: How to sample.
        eos_token_ids: Each of these ends a response.
        pad_token_id: Fills `ids` where a response has ended.
        banned: Forbids tokens, given the responses so far: what is wanted of `token_rules` and `BannedTexts`.
        seeds: One a row, on which its maximum and its tokens depend, whatever else is in the batch; see `row_seeds`.
        generator: Draws the seeds where they are left out; a CPU generator, torch's own when left out.
        encoder_hidden: What `encode` gave for these queries; computed when left out.
        answers: Responses to each query, which follow one another.

    Returns:
        The responses, as long as the longest; batch is queries times answers.

    Raises:
        ParleyError: A query leaves no position for a response, or the model's probabilities are not finite.
    """
    if seeds is None:
        seeds = torch.randint(2**63 - 1, (len(query_ids) * answers,), generator=generator).tolist()
    streams = [torch.Generator(query_ids.device).manual_seed(seed) for seed in seeds]
    limits = _draw_limits(base_model(model), query_mask.repeat_interleave(answers, dim=0), options, streams)
    batch, longest = len(query_ids) * answers, int(limits.max())
    ids = query_ids.new_full((batch, longest), pad_token_id)
    mask, has_eos = torch.zeros_like(ids), torch.zeros(batch, dtype=torch.bool, device=ids.device)
    eos = torch.tensor(eos_token_ids, device=ids.device, dtype=torch.long)
    banned, processors = LogitsProcessorList(banned or ()), options.processors()
    steps: list[tuple[Tensor, Drawable] | None] = []
    rows = torch.arange(batch, device=ids.device)
    with merged(model), cast_once(model, spare_head=True):
        decoder = Decoder(model, query_ids, query_mask, encoder_hidden)
        for step in range(longest):
            logits, so_far = decoder.next_logits(), ids[rows, :step]
            if step == 0 and answers > 1:
                logits = logits.repeat_interleave(answers, dim=0)
                decoder.multiply(answers)
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
