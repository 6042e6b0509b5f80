"""Sampling of responses in batches, each row with its own maximum length; ended rows are removed from the batch.

transformers' `generate` keeps computing ended rows until the last one ends. With maxima between 100 and 400 that is a
large share of the work, so the loop is our own; cache and logits processors are transformers'.
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
from src.models.draws import RowDraws, row_seed
from src.models.lora import merged
from src.models.responses import Model
from src.models.static_decoder import Engine, StaticDecoder, refuse_engine
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
    """How responses are sampled in online training; the defaults are the published recipe's.

    Attributes:
        temperature: Divides the logits, in sampling and in the log-probabilities that are trained on.
        top_k: Sample among the k likeliest tokens; 0 does not limit.
        top_p: Sample among the likeliest tokens that together have this probability; 1 does not limit.
        min_new_tokens: Tokens before EOS is allowed.
        output_min_length: The lower end of the range from which each response's own maximum length is drawn uniformly.
        output_max_length: The upper end of that range; both ends are included, and EOS counts.
        bad_words: Texts that are never sampled, not even inside longer words; the name of a special token such as
            `<unk>` bans that token.
        engine: How tokens are computed: "plain", with a cache that grows and rows that leave the batch as they end; or
            "static", with a cache of fixed size, whose steps a GPU replays as graphs (see `StaticDecoder`). Both
            sample the same tokens, up to rounding.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 5
    output_min_length: int = 100
    output_max_length: int = 400
    bad_words: list[str] = field(default_factory=list)
    engine: Engine = "plain"

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

    def refuse(self, model: Model, *, in_shards: bool = False) -> None:
        """Refuse a model that the engine cannot run; the arguments and errors are `refuse_engine`'s."""
        if self.engine == "static":
            refuse_engine("rollout.engine", model, in_shards=in_shards)

    def decoder(
        self, model: Model, query_ids: Tensor, query_mask: Tensor, encoder_hidden: Tensor | None, *, longest: int
    ) -> Decoder:
        """The engine's decoder; the arguments are `StaticDecoder`'s."""
        if self.engine == "plain":
            return Decoder(model, query_ids, query_mask, encoder_hidden)
        return StaticDecoder(model, query_ids, query_mask, encoder_hidden, longest=longest)

    def processors(self) -> LogitsProcessorList:
        """Temperature, top-k and top-p as transformers' logits processors."""
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
        has_eos: (batch,) false for responses that were cut off.
        drawable: (batch, time) the set of tokens that each was drawn from.
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
    """Sample responses to queries, each of which is processed once; the model must be in evaluation mode.

    An adapter is merged into the weights during sampling.
    A response ends with EOS, at its own maximum, or at the model's last position.

    Args:
        model: An encoder-decoder or decoder-only model, with or without adapter.
        query_ids: (queries, query time), left-padded for a decoder-only model.
        query_mask: (queries, query time).
        options: How to sample.
        eos_token_ids: The tokens that end a response.
        pad_token_id: The padding of `ids` after a response's end.
        banned: Processors that forbid tokens, given the responses so far, such as `token_rules` and `BannedTexts`.
        seeds: One per row, which determines its maximum and its tokens, independent of the batch; see `row_seeds`.
        generator: Draws the seeds if they are left out; a CPU generator, torch's default when left out.
        encoder_hidden: What `encode` returned for these queries; computed when left out.
        answers: Responses per query; those to one query are adjacent.

    Returns:
        The responses, padded to the longest; the batch size is queries times answers.

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
    draws = RowDraws(streams)
    rows = torch.arange(batch, device=ids.device)
    with merged(model), cast_once(model, spare_head=True):
        decoder = options.decoder(model, query_ids, query_mask, encoder_hidden, longest=longest)
        for step in range(longest):
            logits, so_far = decoder.next_logits(), ids[rows, :step]
            if step == 0 and answers > 1:
                logits = logits.repeat_interleave(answers, dim=0)
                decoder.multiply(answers)
            if step < options.min_new_tokens:
                logits[:, eos] = -torch.inf
            logits = processors(so_far, banned(so_far, logits))  # type: ignore[arg-type]
            probabilities = logits.float().softmax(-1)
            tokens = draws(probabilities)
            is_restricted = step < options.min_new_tokens or banned or processors
            steps.append((rows, Drawable.of(logits > -torch.inf)) if is_restricted else None)
            ids[rows, step], mask[rows, step] = tokens, 1
            ended = torch.isin(tokens, eos)
            has_eos[rows] = ended
            goes_on = ~ended & (step + 1 < limits[rows])
            # The step's only wait for the device, if nothing restricts what may be drawn.
            is_finite, *going = torch.cat([probabilities.isfinite().all().unsqueeze(0), goes_on]).tolist()
            if not is_finite:
                raise ParleyError(
                    "the model gives probabilities that are not finite; lower the learning rate, or use "
                    "precision 32-true."
                )
            if not any(going):
                break
            alive = torch.nonzero_static(goes_on, size=sum(going)).flatten()
            rows = rows[alive]
            draws.keep(going, alive)
            decoder.advance(tokens[alive], alive)
    time = len(steps)
    drawable = Drawable.assemble(steps, batch, logits.shape[-1], ids.device)
    return Responses(ids[:, :time], mask[:, :time], has_eos, drawable)


def row_seeds(seed: int, iteration: int, numbers: Sequence[int], answers: int = 1) -> list[int]:
    """Seeds for the answers to prompts, independent of the batch and the process that a prompt is in.

    Args:
        seed: The run's seed.
        iteration: The iteration, so that each has other seeds.
        numbers: The prompts' rows in their split.
        answers: Answers per prompt.
    """
    own = row_seed(seed, iteration, -1)
    return [row_seed(own, number, answer) for number in numbers for answer in range(answers)]


def _draw_limits(
    base: PreTrainedModel, query_mask: Tensor, options: RolloutOptions, streams: Sequence[torch.Generator]
) -> Tensor:
    """Draw the maximum length of each response, shape (batch,)."""
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
