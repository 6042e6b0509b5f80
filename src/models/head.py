"""The output head, over the positions that matter only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        return (inputs[0][positions], *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()
