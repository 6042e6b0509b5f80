"""Scores given responses under a language model: log-probabilities, entropies, values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from src.contracts import IGNORE_INDEX
from src.models.autocast import cast_once
from src.models.responses import Model, encode, output_head, response_states
from src.models.shared_prompts import is_worth_sharing, shared_states
from src.models.value_head import ValueHead
from src.rl.drawable import Drawable
from src.rl.logprobs import logprobs_from_hidden, token_logprobs


class TokenFigures(NamedTuple):
    """Scores of responses under a model, each of shape (batch, time), float32.

    Attributes:
        logprobs: The tokens' log-probabilities.
        entropy: The entropy of the distribution at each token.
        values: The value head's predictions; zeros without one.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


@torch.no_grad()
def encode_prompts(model: Model, query_ids: Tensor, query_mask: Tensor) -> Tensor | None:
    """The encoder's output for each prompt, (prompts, query time, hidden), without gradient; None without an encoder.

    Autocast's cache is cleared, so that this may be called where weights change or are swapped.

    Args:
        model: The policy.
        query_ids: (prompts, query time).
        query_mask: (prompts, query time).
    """
    torch.clear_autocast_cache()
    with cast_once(model, frozen_only=True):
        hidden = encode(model, query_ids, query_mask)
    torch.clear_autocast_cache()
    return hidden


def score_tokens(
    model: Model,
    query_ids: Tensor,
    query_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    encoder_hidden: Tensor | None = None,
    *,
    drawable: Drawable | None = None,
    temperature: float = 1.0,
    value_head: ValueHead | None = None,
    entropy_requires_grad: bool = False,
) -> TokenFigures:
    """Log-probabilities, entropies and values of given responses.

    Args:
        model: Policy or reference.
        query_ids: (batch, query time).
        query_mask: (batch, query time).
        response_ids: (batch, time).
        response_mask: (batch, time).
        encoder_hidden: The encoder's output; computed when left out.
        drawable: The tokens that could be drawn at each position; all when left out.
        temperature: The temperature that the responses are sampled with.
        value_head: The policy's value head; None for no values.
        entropy_requires_grad: Compute the gradient of the entropy.
    """
    states = response_states(model, query_ids, query_mask, response_ids, response_mask, encoder_hidden)
    labels = response_ids.masked_fill(response_mask == 0, IGNORE_INDEX)
    logprobs, entropy = logprobs_from_hidden(
        states.head_input,
        labels,
        output_head(model),
        drawable=drawable,
        temperature=temperature,
        entropy_requires_grad=entropy_requires_grad,
    )
    values = torch.zeros_like(logprobs) if value_head is None else value_head(states.last_hidden)
    return TokenFigures(logprobs, entropy, values)


def score_groups(
    model: Model,
    query_ids: Tensor,
    query_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    *,
    drawable: Drawable | None = None,
    temperature: float = 1.0,
) -> TokenFigures:
    """As `score_tokens`, for several responses to each prompt, which is processed once; without values.

    Args:
        model: A decoder-only policy or reference that `keeps_answers_apart`.
        query_ids: (prompts, query time), left-padded.
        query_mask: (prompts, query time).
        response_ids: (prompts × n, time): all responses to the first prompt, then those to the second, and so on.
        response_mask: (prompts × n, time).
        drawable: The tokens that could be drawn at each position; all when left out.
        temperature: The temperature that the responses are sampled with.
    """
    count = len(query_ids)
    places = torch.arange(len(response_ids), device=response_ids.device)
    by_answer = places.view(count, -1).T.flatten()  # the first responses to all prompts, then the second ones
    states, _ = shared_states(model, query_ids, query_mask, response_ids[by_answer], response_mask[by_answer])
    labels = response_ids.masked_fill(response_mask == 0, IGNORE_INDEX)
    logprobs, entropy = logprobs_from_hidden(
        states[by_answer.argsort()], labels, output_head(model), drawable=drawable, temperature=temperature
    )
    return TokenFigures(logprobs, entropy, torch.zeros_like(logprobs))


class AnswerLogprobs(NamedTuple):
    """Log-probabilities of several answers to each prompt, float32.

    Attributes:
        answers: (answers, time) those of the answers' tokens; 0 at padding.
        prompts: (prompts, query time - 1) those of the prompts' tokens from the second on; None if not asked for.
    """

    answers: Tensor
    prompts: Tensor | None


def answer_logprobs(
    model: Model,
    query_ids: Tensor,
    query_mask: Tensor,
    answer_ids: Tensor,
    answer_mask: Tensor,
    encoder_hidden: Tensor | None = None,
    *,
    with_prompts: bool = False,
    share: bool = False,
) -> AnswerLogprobs:
    """Log-probabilities of answers over the whole vocabulary; an encoder processes each prompt once.

    Args:
        model: Policy or reference.
        query_ids: (prompts, query time), left-padded for a decoder-only model.
        query_mask: (prompts, query time).
        answer_ids: (n × prompts, time): the first answers to all prompts, then the second ones, and so on.
        answer_mask: (n × prompts, time).
        encoder_hidden: The encoder's output for each prompt; computed when left out.
        with_prompts: Score the prompts too, once each; decoder-only.
        share: Put the answers to a prompt into one row if prompts are long; for models that `keeps_answers_apart`.
    """
    labels = answer_ids.masked_fill(answer_mask == 0, IGNORE_INDEX)
    head, count = output_head(model), len(query_ids)
    known = (query_mask[:, 1:] * query_mask[:, :-1]) == 1  # the first token is not predicted
    asked = query_ids[:, 1:].masked_fill(~known, IGNORE_INDEX)
    if share and is_worth_sharing(query_ids, answer_ids):
        states, prompt_states = shared_states(model, query_ids, query_mask, answer_ids, answer_mask)
        prompts = token_logprobs(prompt_states, asked, head) if with_prompts else None
        return AnswerLogprobs(token_logprobs(states, labels, head), prompts)
    times = len(answer_ids) // count
    if encoder_hidden is None:
        encoder_hidden = encode(model, query_ids, query_mask)
    if encoder_hidden is not None:
        encoder_hidden = encoder_hidden.repeat(times, 1, 1)
    queries = query_ids.repeat(times, 1), query_mask.repeat(times, 1)
    found = response_states(model, *queries, answer_ids, answer_mask, encoder_hidden, from_prompt=with_prompts)
    if not with_prompts:
        return AnswerLogprobs(token_logprobs(found.head_input, labels, head), None)
    width = asked.shape[1]
    unasked = torch.full_like(asked, IGNORE_INDEX).repeat(times - 1, 1)
    logprobs = token_logprobs(found.head_input, torch.cat([torch.cat([asked, unasked]), labels], dim=1), head)
    return AnswerLogprobs(logprobs[:, width:], logprobs[:count, :width])
