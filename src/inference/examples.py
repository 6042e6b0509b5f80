"""Prompts for a finished model: a text, a file of prompts, a split of a dataset."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.contracts import Example
from src.datamodules import ChatbotDataModule, ConversationDataModule, DialogSumDataModule, DialogueDataModule
from src.datamodules.conversations import MESSAGE_COLUMNS
from src.datamodules.download import is_url
from src.datamodules.sources import Rows, aliases, only_table, read_split
from src.datamodules.splits import SplitSpec
from src.datamodules.templates import fill, named_templates, resolve_template
from src.errors import ParleyError
from src.files import ROW_SUFFIXES, read_rows, read_text, refuse_surrogates


@dataclass(frozen=True)
class ExampleSet:
    """Examples to generate answers for.

    Attributes:
        examples: In the order of their source; without references where none are known.
        turns: Whether prompt and answer are turns of a conversation.
        trained: Whether the prompts have the form that a DataModule trains on.
    """

    examples: list[Example]
    turns: bool = False
    trained: bool = False


def from_text(text: str, template: str | None = None) -> ExampleSet:
    """One prompt, filled into the template if one is given.

    Raises:
        ParleyError: The text or the template is malformed.
    """
    refuse_surrogates(text, "the prompt")
    return ExampleSet([Example(_filled(template, text), "", [], "0")], trained=template is not None)


def from_file(
    path: Path,
    *,
    column: str | None = None,
    references: Sequence[str] = (),
    template: str | None = None,
    may_be_empty: bool = False,
    separator: str | None = "\n",
) -> ExampleSet:
    """Prompts from a file: a text file's lines or parts, or a column of a table.

    Args:
        path: A table as `read_rows` takes it, or any other file, read as text.
        column: The column with prompts; `prompt` when left out.
        references: Columns with right answers; a cell may be a list of texts.
        template: A template that each prompt is filled into.
        may_be_empty: Allow empty cells, for columns of answers.
        separator: The text between the prompts of a text file; None to read the whole file as one prompt.

    Raises:
        ParleyError: The file or a column is missing, or the file has no prompts.
    """
    if path.suffix.lower() not in ROW_SUFFIXES and path.is_file():
        if column or references:
            raise ParleyError(f"{path} is read line by line; give a table ({', '.join(ROW_SUFFIXES)}) to name columns.")
        parts = enumerate(_parts(read_text(path), separator), 1)
        examples = [Example(part, "", [], str(number)) for number, part in parts if part.strip()]
    else:
        if separator != "\n":
            raise ParleyError(f"{path} is a table, a prompt a row; --whole and --separator are for text files.")
        read = list(read_rows(path))
        rows = Rows([row.cells for row in read], [f"{path}, {row.place}" for row in read], str(path))
        examples = [_example(rows, number, column or "prompt", references, may_be_empty) for number in range(len(read))]
    if not examples:
        raise ParleyError(f"{path} has no prompts in it; give a file with some.")
    filled = [Example(_filled(template, item.prompt), item.target, item.references, item.id) for item in examples]
    return ExampleSet(filled, trained=template is not None)


def _parts(text: str, separator: str | None) -> list[str]:
    """Split a text file into prompts, without the line end at the end of the file or of each line."""
    if separator == "\n":
        return [line.rstrip("\r") for line in text.split("\n")]
    text = text.replace("\r\n", "\n").removesuffix("\n")
    return [text] if separator is None else text.split(separator)


def _example(rows: Rows, number: int, column: str, references: Sequence[str], may_be_empty: bool) -> Example:
    prompt = rows.text(number, column)
    if not (prompt.strip() or may_be_empty):
        raise ParleyError(f"{rows.places[number]}: column {column!r} is empty; fill it or drop the row.")
    texts: list[str] = []
    for name in references:
        cell = rows.rows[number].get(name)
        texts += [str(text) for text in cell] if isinstance(cell, list) else [rows.text(number, name)]
    id = rows.rows[number].get("id")
    return Example(prompt, texts[0] if texts else "", texts, str(number if id is None else id))


def from_dataset(
    path: str, split: str, *, template: str | None = None, seed: int = 42, rows: str | None = None
) -> ExampleSet:
    """A split of DialogSum, ChatbotData or conversations, or of data with such columns, as the DataModule reads it.

    Args:
        path: The `path` of the DataModules.
        split: A name, or a part such as `test[:100]`.
        template: A template's name or text; the DataModule's own when left out.
        seed: The seed with which the DataModule splits a single table.
        rows: Only these, by their numbers in the source (`DialogueDataModule.numbered`), each with its own reference.

    Raises:
        ParleyError: The data cannot be read or is of another kind.
    """
    spec = SplitSpec.parse(split)
    if rows is not None and spec != SplitSpec(spec.name):
        raise ParleyError(f"rows are counted in the whole split and {split} is a part of one; name {spec.name} alone.")
    columns = _columns(path, spec.name)
    options: dict[str, Any] = {"path": path, "seed": seed} | ({"template": template} if template else {})
    if columns is None or {"Q", "A"} <= columns:
        part = next((part for part in ("train", "validation") if spec.name in aliases(part)), "test")
        options[f"{part}_split"] = split
        data: DialogueDataModule = ChatbotDataModule("", **options)
        examples = data.examples(part) if rows is None else data.numbered(part, rows)
        return ExampleSet(examples, turns=True, trained=True)
    if not columns.isdisjoint(MESSAGE_COLUMNS):
        if template:
            raise ParleyError(f"{path} has talks, which take no template; leave it out.")
        if rows is not None:
            raise ParleyError(f"{path} has talks, which are not numbered; take a part of it: --split {spec.name}[5:6].")
        talks = ConversationDataModule("", path=path, seed=seed, test_split=split)
        return ExampleSet(talks.last_turns("test"), turns=True, trained=True)
    if "dialogue" in columns:
        data = DialogSumDataModule("", **options, test_split=split)
        return ExampleSet(data.examples("test") if rows is None else data.numbered("test", rows), trained=True)
    raise ParleyError(
        f"{path} has the columns {', '.join(sorted(columns))}, not DialogSum's (dialogue, summary), "
        "ChatbotData's (Q, A) or a conversation's (messages); give it with --input and --column."
    )


def _columns(path: str, split: str) -> set[str] | None:
    """The column names of a source; None for a URL, which only ChatbotData takes."""
    if is_url(path):
        return None
    if file := only_table(path):
        first = next(iter(read_rows(file)), None)
        return set(first.cells) if first else set()
    try:
        rows = read_split(path, split)
    except ParleyError as error:
        try:
            rows = read_split(path, "train")  # a missing split may be cut from it
        except ParleyError:
            raise error from None
    return set(rows.rows[0]) if rows.rows else set()


def _filled(template: str | None, text: str) -> str:
    """A template with the text in every field; the text itself without a template."""
    if template is None:
        return text
    known = named_templates().get(template, template)
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(known) if name}
    except ValueError:
        fields = set()  # resolve_template raises the error
    return fill(resolve_template(template, fields), dict.fromkeys(fields, text))
