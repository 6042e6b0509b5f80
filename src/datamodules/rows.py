"""Rows of a dataset, with their columns sorted into fields and answer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from src.errors import ParleyError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """A question and one right answer.

    Attributes:
        fields: The values for the template's fields.
        target: One right answer.
        id: The row's name in its source.
        size: Its length in characters, for `min_chars` and `max_chars`.
    """

    fields: dict[str, str] = field(default_factory=dict)
    target: str = ""
    id: str = ""
    size: int = 0

    @property
    def texts(self) -> list[str]:
        """The texts that must not be empty."""
        return [*self.fields.values(), self.target]


RowT = TypeVar("RowT", bound=Row)


def without_empty(rows: Sequence[RowT], origin: str, *, strict: bool, speaks: bool) -> list[RowT]:
    """Leave out the rows that have an empty cell.

    Args:
        rows: A source's.
        origin: What to call the source.
        strict: Refuse them instead.
        speaks: Whether this process is the one that logs.

    Raises:
        ParleyError: There is such a row and `strict` is set.
    """
    kept = [row for row in rows if all(text.strip() for text in row.texts)]
    if len(kept) == len(rows):
        return kept
    first = next(row.id for row in rows if not all(text.strip() for text in row.texts))
    if strict:
        raise ParleyError(f"{origin}: row {first!r} has an empty cell; fill it, or drop strict to skip such rows.")
    if speaks:
        dropped = len(rows) - len(kept)
        log.warning("%s: dropped %d of %d rows with an empty cell (first: %s).", origin, dropped, len(rows), first)
    return kept


def by_question(rows: Iterable[RowT]) -> list[list[RowT]]:
    """Group rows with equal fields, in the order of each question's first row."""
    groups: dict[tuple[str, ...], list[RowT]] = {}
    for row in rows:
        groups.setdefault(tuple(row.fields[name] for name in sorted(row.fields)), []).append(row)
    return list(groups.values())
