"""Rows of a dataset, with their columns sorted into fields and answer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
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


@dataclass
class Note:
    """Something that is left out, counted.

    Attributes:
        count: How many.
        of: Of how many.
        first: The first one's name.
    """

    count: int = 0
    of: int = 0
    first: str = ""


class Notes:
    """What is left out of a source: counted, however many rows at a time are looked at, and told once.

    Args:
        notes: By what is told of each: a text with `{count}`, `{of}` and `{first}` in it.
    """

    def __init__(self, notes: dict[str, Note] | None = None) -> None:
        self.notes = notes or {}

    def add(self, text: str, names: Sequence[str], *, of: int) -> None:
        """Count.

        Args:
            text: What is told of them.
            names: Of the rows that are left out.
            of: Rows that were looked at.
        """
        note = self.notes.setdefault(text, Note())
        note.first = note.first or next(iter(names), "")
        note.count += len(names)
        note.of += of

    def tell(self, origin: str) -> None:
        """Log all that is not none.

        Args:
            origin: What to call the source.
        """
        for text, note in self.notes.items():
            if note.count:
                log.warning("%s: %s.", origin, text.format(**asdict(note)))


def without_empty(rows: Sequence[RowT], origin: str, notes: Notes, *, strict: bool) -> list[RowT]:
    """Drop rows with an empty text.

    Args:
        rows: A source's.
        origin: What to call the source.
        notes: Where they are counted.
        strict: Refuse them instead.

    Raises:
        ParleyError: There is such a row and `strict` is set.
    """
    empty = [row.id for row in rows if not all(text.strip() for text in row.texts)]
    if empty and strict:
        raise ParleyError(f"{origin}: row {empty[0]!r} has an empty cell; fill it, or drop strict to skip such rows.")
    notes.add("dropped {count} of {of} rows with an empty cell (first: {first})", empty, of=len(rows))
    return [row for row in rows if all(text.strip() for text in row.texts)]


def by_question(rows: Iterable[RowT]) -> list[list[RowT]]:
    """Group rows with equal fields, in the order of each question's first row."""
    groups: dict[tuple[str, ...], list[RowT]] = {}
    for row in rows:
        groups.setdefault(tuple(row.fields[name] for name in sorted(row.fields)), []).append(row)
    return list(groups.values())
