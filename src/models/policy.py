"""What a language model says about responses that are there already."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from src.contracts import IGNORE_INDEX
from src.models.responses import Model, output_head, response_states
from src.models.value_head import ValueHead
from src.rl.drawable import Drawable
from src.rl.logprobs import logprobs_from_hidden


class TokenFigures(NamedTuple):
    """What a model says about responses, each of shape (batch, time), float32.

    Attributes:
        logprobs: Of the tokens.
        entropy: Of the distribution at each token.
        values: Of the value head; zeros without one.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


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
    """Log-probabilities, entropies and values of responses that are there already.

    Args:
        model: Policy or reference.
        query_ids: (batch, query time).
        query_mask: (batch, query time).
        response_ids: (batch, time).
        response_mask: (batch, time).
        encoder_hidden: The encoder's output, where it is known.
        drawable: What could be drawn at each place; everything when left out.
        temperature: The one that responses are sampled at.
        value_head: The policy's.
        entropy_requires_grad: Let gradient through the entropy.
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
