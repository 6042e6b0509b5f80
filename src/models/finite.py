"""Refuses weights that are not finite, since a single NaN makes every output NaN."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from src.errors import ParleyError


def refuse_not_finite(weights: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Refuse a model's weights where one is not finite.

    Args:
        weights: Pairs of name and weight.
        name: The model's name as the user gave it.

    Raises:
        ParleyError: A weight is NaN or infinite.
    """
    for place, weight in weights:
        if broken := int((~weight.isfinite()).sum()):
            raise ParleyError(
                f"the weights of {name} are not finite: {place} holds {broken:,} NaN or infinite values; give an "
                "earlier checkpoint, or another model."
            )
