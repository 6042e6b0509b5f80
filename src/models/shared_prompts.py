"""Several answers to a prompt in one row, kept apart by the attention mask, so that the prompt is processed once."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.models.responses import Model, response_states, states_caught
from src.models.tying import base_model, embedding_matrix

LEAK_TOLERATED = 0.1  # of `_leak`, which is near 0 or near 1
WORTH = 2  # least ratio of prompt to answer length, since the cost of attention is quadratic in a row's length


def is_worth_sharing(query_ids: Tensor, answer_ids: Tensor) -> bool:
    """Whether prompts are long enough, compared with their answers, for sharing to pay.

    Args:
        query_ids: (prompts, query time).
        answer_ids: (answers, time).
    """
    return query_ids.shape[1] >= WORTH * answer_ids.shape[1]


def shared_states(
    model: Model, query_ids: Tensor, query_mask: Tensor, answer_ids: Tensor, answer_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The output head's inputs at the positions that predict answers and prompts.

    A row is a prompt and all answers to it. By a mask over pairs of positions each answer attends to the prompt and
    itself only, and its position ids continue from the prompt's.

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
    """The additive attention mask, (rows, 1, places, places): 0 where attention is allowed, the least number elsewhere.

    Args:
        mask: (rows, places) 1 = token.
        width: The prompt's length.
        times: The number of answers in a row.
        dtype: The model's type.
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
    itself = torch.eye(len(segments), dtype=torch.bool, device=mask.device)  # for padding: a fully masked row gives NaN
    sees = (earlier & own)[None] & mask.bool()[:, None] | itself
    return torch.zeros(sees.shape, dtype=dtype, device=mask.device).masked_fill(~sees, torch.finfo(dtype).min)[:, None]


def keeps_answers_apart(model: Model) -> bool:
    """Test whether a model keeps several answers in a row apart; not every architecture takes such masks and positions.

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
    except (RuntimeError, ValueError, TypeError, IndexError):  # the model does not take such a mask
        return False
    finally:
        base.train(training)


def _has_window(base: PreTrainedModel) -> bool:
    """Whether some layers have a sliding window, which our own mask would remove."""
    kinds = getattr(base.config, "layer_types", None) or []
    return any(kind != "full_attention" for kind in kinds) or (
        not kinds and getattr(base.config, "sliding_window", None) is not None
    )


def _leak(base: PreTrainedModel) -> float:
    """The relative change of answers' logits when they share a row: 1 if they attend to each other fully."""
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
