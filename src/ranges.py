"""What numbers a setting may have; one line, alike everywhere, where it has another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from src.errors import ParleyError

WORD = 2**63  # what libraries take for a whole number


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have; NaN, infinity and whole numbers beyond 64 bits are in none.

    Attributes:
        least: The least one; any when left out.
        below: What it must be below.
        most: The greatest one.
        above: Whether `least` itself is too little.
        note: What a number within the range means, for the line that refuses one.
    """

    least: float | None = None
    below: float | None = None
    most: float | None = None
    above: bool = False
    note: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number is in it."""
        if isinstance(value, int):
            if not -WORD <= value < WORD:
                return False
        elif not math.isfinite(value):
            return False
        if self.least is not None and (value < self.least or (self.above and value == self.least)):
            return False
        return (self.below is None or value < self.below) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        parts = []
        if self.least is not None:
            parts.append(f"above {self.least:g}" if self.above else f"{self.least:g} or more")
        if self.below is not None:
            parts.append(f"below {_shown(self.below)}")
        if self.most is not None:
            parts.append(f"at most {_shown(self.most)}")
        said = " and ".join(parts) or f"a finite number below {_shown(WORD)}"
        return f"{said} ({self.note})" if self.note else said

    def refuse(self, name: str, value: Any) -> None:
        """Refuse a number that is not in it.

        Args:
            name: The setting's.
            value: What it has; what is no number is left to whoever checks types.

        Raises:
            ParleyError: Names the setting, its value and what it may be.
        """
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not self.holds(value):
            huge = isinstance(value, int) and abs(value) >= WORD and self.below is None and self.most is None
            bound = f" and below {_shown(WORD)}" if huge and self.least is not None else ""
            raise ParleyError(f"{name} is {value}; it must be {self}{bound}.")


def _shown(bound: float) -> str:
    power = math.log2(bound) if bound >= 2**32 else 0.5
    return f"2**{power:g}" if power.is_integer() else f"{bound:g}"


def refuse_outside(settings: object, ranges: Mapping[str, Range], prefix: str = "") -> None:
    """Refuse an object whose attributes are not in their ranges; None is nothing to refuse.

    Args:
        settings: The object.
        ranges: By the attribute's name.
        prefix: What the settings' names begin with for the user.

    Raises:
        ParleyError: Names the first that is not.
    """
    for name, allowed in ranges.items():
        allowed.refuse(f"{prefix}{name}", getattr(settings, name))


ANY = Range()
POSITIVE, NOT_NEGATIVE, COUNT, OR_NO_LIMIT = Range(0, above=True), Range(0), Range(1), Range(-1)
SHARE, UNIT, PROBABILITY = Range(0, 1), Range(0, most=1), Range(0, most=1, above=True)
SEED = Range(0, 2**63)  # torch's
