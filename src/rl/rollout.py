"""The rollout: the responses of an iteration and all that training on them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from src.rl.drawable import Drawable

_PER_QUERY_TOKEN = ("query_ids", "query_mask")
_PER_RESPONSE = ("scores", "shaped_scores", "has_eos", "index")


@dataclass(frozen=True, eq=False)
class Rollout:
    """The responses of one iteration with their scores, log-probabilities and advantages; all tensors are detached.

    The responses to one prompt are adjacent. Shapes: per query token (batch, query_time), per response token (batch,
    time), per response (batch,). Values per response token are 0 where `response_mask` is 0.

    Attributes:
        index: The row of each prompt in its split.
        query_ids: Token ids of the prompts, padded on the left or on the right.
        query_mask: 1 = prompt token.
        response_ids: Token ids of the responses, padded on the right.
        response_mask: 1 = response token, including its EOS.
        has_eos: False where a response was cut off.
        drawable: (batch, time) the tokens that could be drawn at each position; all probabilities are over these.
        logprobs: Log-probabilities under the policy that sampled.
        ref_logprobs: Log-probabilities under the reference.
        scores: One per response, as the reward returned them.
        shaped_scores: The scores after scaling, clipping and the penalty for a missing EOS.
        advantages: Per token; zeros until the method computes them.
        values: The value head's predictions; None for methods without one.
        returns: The value head's targets; None for methods without one.
    """

    index: Tensor
    query_ids: Tensor
    query_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor
    has_eos: Tensor
    drawable: Drawable
    logprobs: Tensor
    ref_logprobs: Tensor
    scores: Tensor
    shaped_scores: Tensor
    advantages: Tensor
    values: Tensor | None = None
    returns: Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in self._tensors().items():
            expected = self._expected_shape(name)
            if tensor.shape != expected:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; it must be {tuple(expected)}.")

    def __len__(self) -> int:
        return self.response_ids.shape[0]

    def _tensors(self) -> dict[str, Tensor | Drawable]:
        """All fields that are not None, by name."""
        present = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in present.items() if tensor is not None}

    def to(self, device: torch.device | str) -> Rollout:
        """A copy on another device; on a GPU it is made while the host goes on."""
        asynchronous = torch.device(device).type == "cuda"
        moved = {name: tensor.to(device, non_blocking=asynchronous) for name, tensor in self._tensors().items()}
        return Rollout(**moved)  # type: ignore[arg-type]

    def select(self, indices: Tensor) -> Rollout:
        """Select some responses, and remove padding that only the others needed.

        Args:
            indices: Shape (n,), the rows in the order wanted; on any device.

        Returns:
            A rollout of n rows; its query and response times are those of its own longest rows, but at least 1.
        """
        indices = indices.to(self.response_ids.device)
        query, response = _columns(self.query_mask[indices]), _columns(self.response_mask[indices])
        chosen: dict[str, Any] = {}
        for name, tensor in self._tensors().items():
            rows = tensor[indices]
            if name not in _PER_RESPONSE:
                rows = rows[:, query if name in _PER_QUERY_TOKEN else response]
            chosen[name] = rows
        return Rollout(**chosen)

    def empty(self) -> Rollout:
        """A copy with an all-zero response mask, which gives no gradient."""
        return replace(self, response_mask=torch.zeros_like(self.response_mask))

    @staticmethod
    def join(parts: Sequence[Rollout], *, pads_left: bool, vocabulary: int) -> Rollout:
        """Concatenate several rollouts.

        Args:
            parts: At least one, all of the same method.
            pads_left: Whether queries are padded on the left.
            vocabulary: The size of the vocabulary.
        """
        query = max(part.query_ids.shape[1] for part in parts)
        time = max(part.response_ids.shape[1] for part in parts)
        joined: dict[str, Any] = {"drawable": Drawable.join([part.drawable for part in parts], time, vocabulary)}
        for name in parts[0]._tensors().keys() - joined.keys():
            tensors = [getattr(part, name) for part in parts]
            if name not in _PER_RESPONSE:
                width, left = (query, pads_left) if name in _PER_QUERY_TOKEN else (time, False)
                tensors = [_widen(tensor, width, left=left) for tensor in tensors]
            joined[name] = torch.cat(tensors)
        return Rollout(**joined)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: tensors on the CPU, by name."""
        state: dict[str, Any] = dict(self.to("cpu")._tensors())
        return state | {"drawable": self.drawable.to("cpu").data, "drawable_form": self.drawable.form}

    @staticmethod
    def from_state_dict(state: dict[str, Any]) -> Rollout:
        """Restore a rollout from its `state_dict`."""
        state = dict(state)
        return Rollout(**state | {"drawable": Drawable(state["drawable"], state.pop("drawable_form"))})

    def _expected_shape(self, name: str) -> torch.Size:
        if name in _PER_RESPONSE:
            return self.response_ids.shape[:1]
        if name in _PER_QUERY_TOKEN:
            return torch.Size((len(self), self.query_ids.shape[1]))
        return torch.Size((len(self), self.response_mask.shape[1]))


def _columns(mask: Tensor) -> slice:
    """From the first to the last column in which any row has a token; one column where none has."""
    used = [column for column, is_used in enumerate(mask.bool().any(dim=0).tolist()) if is_used]
    return slice(used[0], used[-1] + 1) if used else slice(0, 1)


def _widen(rows: Tensor, width: int, *, left: bool) -> Tensor:
    missing = width - rows.shape[1]
    return F.pad(rows, (missing, 0) if left else (0, missing))
