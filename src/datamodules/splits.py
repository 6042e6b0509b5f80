"""Split specifications: `train`, `train[:80%]`, `validation[100:200]`, `train[80%:+11]`; they count questions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from src.errors import ParleyError

_PATTERN = re.compile(r"(?P<name>[\w-]+)(?:\[(?P<start>\d+%?)?:(?P<stop>\+?\d+%?)?\])?")


@dataclass(frozen=True)
class SplitSpec:
    """A source's split, or a part of it.

    Attributes:
        name: The split in the source.
        start: The first question, as a number or a percentage (`80%`); the beginning when `None`.
        stop: The question after the last, or with a plus the number of questions (`+11`); the end when `None`.
    """

    name: str
    start: str | None = None
    stop: str | None = None

    @classmethod
    def parse(cls, text: str) -> SplitSpec:
        """Read `name`, `name[start:stop]` with numbers or percentages.

        As `datasets.ReadInstruction`, except for percentages: that rounds to the nearest row (8,018 of 10,022 at 80 %),
        whereas the published recipes round down (8,017).

        Raises:
            ParleyError: The text is not a split specification.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ParleyError(f"split {text!r} is not understood; write a name, or a slice such as train[:80%].")
        return cls(match["name"], match["start"], match["stop"])

    def bounds(self, length: int) -> tuple[int, int]:
        """Resolve to the range of question numbers, as (start, stop).

        A percentage is rounded down, so `[:80%]` and `[80%:]` together are all: of 10,022 questions 8,017 and 2,005.
        """
        start = _resolve(self.start, length, 0)
        if self.stop is not None and self.stop.startswith("+"):
            return start, min(start + _resolve(self.stop[1:], length, length), length)
        return start, _resolve(self.stop, length, length)


def _resolve(bound: str | None, length: int, default: int) -> int:
    if bound is None:
        return default
    if bound.endswith("%"):
        return min(int(bound[:-1]), 100) * length // 100
    return min(int(bound), length)


def row_numbers(text: str, length: int, origin: str) -> list[int]:
    """Parse row numbers such as `40`, `40,80`, `0:10`.

    Args:
        text: Numbers from 0 and ranges, separated by commas; a range ends before its second number.
        length: The number of rows.
        origin: The rows' name, for messages.

    Raises:
        ParleyError: The text is malformed, or there is no such row.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?::(\d{1,9}))?\s*", part)
        if match is None:
            raise ParleyError(
                f"rows {text!r} are not understood; write numbers from 0 and ranges, such as 40,80 or 0:10."
            )
        first, stop = int(match[1]), int(match[2] or int(match[1]) + 1)
        if stop <= first or stop > length:
            raise ParleyError(f"there are no rows {part.strip()}: {origin} has {length} rows, numbered from 0.")
        numbers += range(first, stop)
    return numbers
