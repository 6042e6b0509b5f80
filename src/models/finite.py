"""Weights that nothing can come of: one NaN makes every answer of NaN."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from src.errors import ParleyError


def refuse_not_finite(weights: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Refuse a model's weights where one is not finite.

    Args:
        weights: Each with its name.
        name: What the user called the model.

    Raises:
        ParleyError: A weight is NaN or infinite.
    """
    for place, weight in weights:
        if broken := int((~weight.isfinite()).sum()):
            raise ParleyError(
                f"the weights of {name} are not finite: {place} holds {broken:,} NaN or infinite values; give an "
                "earlier checkpoint, or another model."
            )
