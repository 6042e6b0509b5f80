"""The output head, computed at selected positions only, and in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def logits_at(
    model: nn.Module, rows: Tensor, columns: Tensor, time: int, *, only_states: bool = False
) -> Iterator[list[Tensor]]:
    """Within the block the model returns logits for the selected positions only: (selected, vocabulary).

    A language model's head is its widest layer, and its logits at prompt and padding positions are not needed. Since
    the head's inputs are selected rather than its outputs, everything before and after the head is unchanged.

    Args:
        model: Any model with output embeddings.
        rows: (selected,) where logits are needed: the texts in the batch, and
        columns: (selected,) the tokens in these. A mask would be turned into them, which stalls a GPU each time.
        time: The length of the texts.
        only_states: Have the model return no logits at all, for a head that is applied later.

    Yields:
        The head's inputs at the selected positions, (selected, hidden), one tensor a call of the model.
    """
    states: list[Tensor] = []

    def choose(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        virtual = inputs[0].shape[1] - time  # virtual tokens of prompt tuning
        states.append(inputs[0][rows, columns + virtual])
        return (states[-1][:0] if only_states else states[-1], *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)  # type: ignore[operator]
    try:
        yield states
    finally:
        handle.remove()


def in_float32(head: nn.Module, hidden: Tensor) -> Tensor:
    """Apply a head to hidden states in float32, regardless of autocast and of its weights' dtype.

    The rest of a model may compute in bfloat16, but not its head where ratios of probabilities are used in training:
    the rounding error of a logit of 10 in bfloat16 is up to 0.03.

    Args:
        head: Any module with one input.
        hidden: (..., hidden).
    """
    with torch.autocast(hidden.device.type, enabled=False):
        weights = {name: weight.float() for name, weight in head.named_parameters() if weight.is_floating_point()}
        return torch.func.functional_call(head, weights, (hidden.float(),))
