"""The output head: over the positions that matter only, and in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def logits_at(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Within the block the model's logits are those of the chosen positions: (chosen, vocabulary).

    A language model's head is its widest layer, and what it says about a prompt or about padding is thrown away.
    Choosing its inputs instead of its outputs leaves everything that a model does before and after the head in place.

    Args:
        model: Any model with output embeddings.
        positions: (batch, time) True where logits are wanted.
    """

    def choose(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        virtual = inputs[0].shape[1] - positions.shape[1]  # what prompt tuning puts in front
        return (inputs[0][F.pad(positions, (virtual, 0))], *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


def in_float32(head: nn.Module, hidden: Tensor) -> Tensor:
    """What a head makes of hidden states, in float32 whatever autocast is on and whatever its weights are in.

    The trunk of a model may compute in bfloat16. Its head must not where ratios of probabilities are learned from:
    rounding a logit of 10 to bfloat16 is off by up to 0.03.

    Args:
        head: Any module with one input.
        hidden: (..., hidden).
    """
    with torch.autocast(hidden.device.type, enabled=False):
        weights = {name: weight.float() for name, weight in head.named_parameters() if weight.is_floating_point()}
        return torch.func.functional_call(head, weights, (hidden.float(),))
