"""Several answers to a prompt in one row, none of which sees another: a decoder-only model reads the prompt once."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.models.responses import Model, response_states, states_caught
from src.models.tying import base_model, embedding_matrix

LEAK_TOLERATED = 0.1  # a model either keeps the answers apart, up to rounding, or does not
WORTH = 2  # prompts at least so many times as long as answers: a row's attention costs by its length squared


def is_worth_sharing(query_ids: Tensor, answer_ids: Tensor) -> bool:
    """Whether prompts are long enough beside their answers.

    Args:
        query_ids: (prompts, query time).
        answer_ids: (answers, time).
    """
    return query_ids.shape[1] >= WORTH * answer_ids.shape[1]


def shared_states(
    model: Model, query_ids: Tensor, query_mask: Tensor, answer_ids: Tensor, answer_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """What enters the output head at the places that predict answers and prompts.

    A row is a prompt and all answers to it, each of which sees the prompt and itself and counts its positions from the
    prompt's end, by a mask over pairs of places.

    Args:
        model: A decoder-only model that `keeps_answers_apart`.
        query_ids: (prompts, query time), left-padded.
        query_mask: (prompts, query time).
        answer_ids: (n × prompts, time), right-padded: the first answers to all prompts, then the second ones.
        answer_mask: (n × prompts, time).

    Returns:
        (n × prompts, time, hidden) for the answers' tokens, and (prompts, query time - 1, hidden) for the prompts' from
        the second on.
    """
    base = base_model(model)
    count, width = query_ids.shape
    times, time = len(answer_ids) // count, answer_ids.shape[1]
    answers, masks = (each[:, : time - 1].chunk(times) for each in (answer_ids, answer_mask))
    mask = torch.cat([query_mask, *masks], dim=1)
    places = (query_mask.long().cumsum(1) - 1).clamp(min=0)
    starts = query_mask.sum(1, keepdim=True)
    steps = torch.arange(time - 1, device=query_ids.device).expand(count, -1)
    positions = torch.cat([places, *(starts + steps for _ in range(times))], dim=1)
    inputs: dict[str, Any] = {
        "input_ids": torch.cat([query_ids, *answers], dim=1),
        "attention_mask": _mask(mask, width, times, base.dtype),
        "position_ids": positions,
    }
    with states_caught(base) as caught:
        base(**inputs, use_cache=False)
    states = caught["head_input"]
    first = states[:, width - 1 : width]
    rest = states[:, width:].chunk(times, dim=1) if time > 1 else [states[:, width:]] * times
    return torch.cat([torch.cat([first, each], dim=1) for each in rest]), states[:, : width - 1]


def _mask(mask: Tensor, width: int, times: int, dtype: torch.dtype) -> Tensor:
    """(rows, 1, places, places), to be added to scores: 0 where a place may look, the least number elsewhere.

    Args:
        mask: (rows, places) 1 = token.
        width: Places of the prompt.
        times: Answers in a row.
        dtype: Of the model.
    """
    length = (mask.shape[1] - width) // times
    segments = torch.cat(
        [
            torch.zeros(width, dtype=torch.long, device=mask.device),
            torch.arange(1, times + 1, device=mask.device).repeat_interleave(length),
        ]
    )
    earlier = torch.ones(len(segments), len(segments), dtype=torch.bool, device=mask.device).tril()
    own = (segments[None] == 0) | (segments[None] == segments[:, None])
    itself = torch.eye(len(segments), dtype=torch.bool, device=mask.device)  # padding sees itself, not nothing
    sees = (earlier & own)[None] & mask.bool()[:, None] | itself
    return torch.zeros(sees.shape, dtype=dtype, device=mask.device).masked_fill(~sees, torch.finfo(dtype).min)[:, None]


def keeps_answers_apart(model: Model) -> bool:
    """Try whether a model can be shown several answers in a row: not every architecture takes masks and positions.

    Args:
        model: The model.
    """
    base = base_model(model)
    if base.config.is_encoder_decoder or _has_window(base):
        return False
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return False
    training = base.training
    base.eval()
    try:
        with torch.no_grad(), torch.autocast(base.device.type, enabled=False):
            return _leak(base) <= LEAK_TOLERATED
    except (RuntimeError, ValueError, TypeError, IndexError):  # of a model that takes no such mask
        return False
    finally:
        base.train(training)


def _has_window(base: PreTrainedModel) -> bool:
    """Whether some layers look back only so far, which a mask of our own would undo."""
    kinds = getattr(base.config, "layer_types", None) or []
    return any(kind != "full_attention" for kind in kinds) or (
        not kinds and getattr(base.config, "sliding_window", None) is not None
    )


def _leak(base: PreTrainedModel) -> float:
    """How far answers are from themselves when they share a prompt, where 1 is what reading one after another makes."""
    ids = torch.arange(20, device=base.device) % embedding_matrix(base).shape[0]
    query, first, second = ids[None, :6], ids[None, 6:12], ids[None, 12:18]
    padded = torch.cat([ids[None, 18:], query], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :2] = 0

    def alone(query: Tensor, answer: Tensor) -> Tensor:
        return response_states(base, query, torch.ones_like(query), answer, torch.ones_like(answer)).head_input.float()

    both = torch.cat([first, second])
    shared = shared_states(base, padded, mask, both, torch.ones_like(both))[0].float()
    apart = torch.cat([alone(query, first), alone(query, second)])
    joined = alone(torch.cat([query, first], dim=1), second)
    return float((shared - apart).norm() / (joined - apart[1:]).norm())
