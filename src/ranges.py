"""Ranges of numeric settings, and one uniform error message for a value outside its range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from src.errors import ParleyError

WORD = 2**63  # signed 64-bit integers, which the libraries take, are below it


@dataclass(frozen=True)
class Range:
    """The values that a setting may have; NaN, infinity and integers beyond 64 bits are in no range.

    Attributes:
        least: The lower bound; none when left out.
        below: The exclusive upper bound; none when left out.
        most: The inclusive upper bound; none when left out.
        above: Whether the lower bound is exclusive.
        note: What the values mean, added to the error message.
    """

    least: float | None = None
    below: float | None = None
    most: float | None = None
    above: bool = False
    note: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
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
        """Raise for a number outside the range.

        Args:
            name: The setting's name.
            value: Its value; anything but a number passes, since types are checked elsewhere.

        Raises:
            ParleyError: The number is outside; the message names the setting, its value and the range.
        """
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not self.holds(value):
            huge = isinstance(value, int) and abs(value) >= WORD and self.below is None and self.most is None
            bound = f" and below {_shown(WORD)}" if huge and self.least is not None else ""
            raise ParleyError(f"{name} is {value}; it must be {self}{bound}.")


def _shown(bound: float) -> str:
    power = math.log2(bound) if bound >= 2**32 else 0.5
    return f"2**{power:g}" if power.is_integer() else f"{bound:g}"


def refuse_outside(settings: object, ranges: Mapping[str, Range], prefix: str = "") -> None:
    """Raise for the first attribute of an object that is outside its range; None always passes.

    Args:
        settings: The object.
        ranges: The range of each attribute, by its name.
        prefix: Put before the attribute's name in the message.

    Raises:
        ParleyError: An attribute is outside its range.
    """
    for name, allowed in ranges.items():
        allowed.refuse(f"{prefix}{name}", getattr(settings, name))


ANY = Range()
POSITIVE, NOT_NEGATIVE, COUNT, OR_NO_LIMIT = Range(0, above=True), Range(0), Range(1), Range(-1)
SHARE, UNIT, PROBABILITY = Range(0, 1), Range(0, most=1), Range(0, most=1, above=True)
SEED = Range(0, 2**63)  # what torch's generators take
