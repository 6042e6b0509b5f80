"""Data rows for the page: texts to ask about, with reference answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from src.datamodules import DialogSumDataModule
from src.datamodules.conversations import MESSAGE_COLUMNS
from src.datamodules.rows import by_question
from src.datamodules.sources import Rows, read_split
from src.datamodules.turns import answered, as_text, parse_messages
from src.errors import ParleyError
from src.files import ROW_SUFFIXES
from src.inference.examples import from_file


@dataclass(frozen=True)
class PageRow:
    """One data row.

    Attributes:
        id: Its name in the source.
        text: A dialogue, a question or a prompt, without a template.
        references: Reference answers; may be empty.
        is_dialogue: Whether the text is a dialogue, which is asked about in a template.
    """

    id: str
    text: str
    references: list[str] = field(default_factory=list)
    is_dialogue: bool = False


def read_page_rows(path: str) -> list[PageRow]:
    """Read a data file: DialogSum, ChatbotData, conversations, a table with a prompt, or a text file's lines.

    Args:
        path: A file, a directory (its split `test` if there is one, else `validation` or `train`) or a hub name.

    Raises:
        ParleyError: It cannot be read, or has no column of prompts.
    """
    place = Path(path).expanduser()
    if place.is_file() and place.suffix.lower() not in ROW_SUFFIXES:
        found = [PageRow(item.id, item.prompt) for item in from_file(place).examples]
    else:
        found = [row for row in _rows(_read(path)) if row.text.strip()]
    if not found:
        raise ParleyError(f"{path} has no rows that ask anything; give --page-data another file.")
    return found


def _read(path: str) -> Rows:
    try:
        return read_split(path, "test")
    except ParleyError as error:
        for split in ("validation", "train") if Path(path).expanduser().is_dir() else ():
            try:
                return read_split(path, split)
            except ParleyError:
                continue
        raise error


def _rows(source: Rows) -> list[PageRow]:
    columns = set(source.rows[0]) if source.rows else set()
    numbers = range(len(source.rows))
    names = [str(cells.get("id") or number) for number, cells in enumerate(source.rows)]
    if "dialogue" in columns and any(name.startswith("summary") for name in columns):
        groups = by_question(DialogSumDataModule("", path=source.origin).to_rows(source))
        return [
            PageRow(group[0].id, group[0].fields["dialogue"], [row.target for row in group if row.target], True)
            for group in groups
        ]
    if {"Q", "A"} <= columns:
        return [PageRow(names[n], source.text(n, "Q"), [source.text(n, "A")]) for n in numbers]
    if column := next((name for name in MESSAGE_COLUMNS if name in columns), None):
        return [_talk(names[n], source.rows[n].get(column), source.places[n]) for n in numbers]
    if column := next((name for name in ("dialogue", "prompt", "Q") if name in columns), None):
        return [PageRow(names[n], _prompt(source, n, column), is_dialogue=column == "dialogue") for n in numbers]
    raise ParleyError(
        f"{source.origin} has the columns {', '.join(sorted(columns))}, and none of dialogue, prompt, Q or messages; "
        "rename one."
    )


def _prompt(source: Rows, number: int, column: str) -> str:
    cell = source.rows[number].get(column)
    if isinstance(cell, list):
        return as_text(parse_messages(cell, source.places[number]))
    return source.text(number, column)


def _talk(name: str, cell: object, place: str) -> PageRow:
    """A conversation up to its last answer, which is the reference."""
    turns = answered(parse_messages(cell, place))
    return PageRow(name, as_text(turns[:-1]), [turns[-1].content]) if turns else PageRow(name, "")
