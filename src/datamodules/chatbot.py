"""ChatbotData: questions and their answers, in Korean."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from src.datamodules.dialogue import DialogueDataModule
from src.datamodules.download import downloaded, is_url
from src.datamodules.formats import Format
from src.datamodules.rows import Row
from src.datamodules.sources import Rows, aliases, holds_split, only_table
from src.errors import ParleyError


class ChatbotDataModule(DialogueDataModule):
    """ChatbotData's `Q,A,label`, or any table with a question and an answer in columns of these names.

    The source's own splits are taken as they are. Missing ones are cut from the one to train on, and so are all three
    if the source is a single table (a file, a URL, a directory with one file, a hub dataset with one split). Rows are
    divided by question: questions that are equal apart from spaces, punctuation, case and Unicode composition are in
    the same split. A question's split depends only on the seed and the question, so that it does not change when rows
    are added or labels chosen.

    The published encoding is `<s>question</s><s>answer</s>`, of 128 tokens at most, and every token is learned (set
    `loss_on: all`).

    Args:
        model_name_or_path: Whose tokenizer and architecture to prepare for. The command links it to the model's.
        path: A file, an http(s) URL, a directory or a hub name.
        labels: Keep rows with one of these labels (0 everyday, 1 parting, 2 love); all rows when left out.
        validation_fraction: Share of the questions for validation, if that is cut from the training split.
        test_fraction: Share of the questions for testing, if that is cut from the training split.
        train_split: The source's split to train on; the parts that name the same one share it.
        validation_split: The source's split for validation; cut from `train_split` if the source has none.
        test_split: The source's split for testing and predicting; likewise.
        template: A prompt template's name or text; it has `{question}`.
        format: As in `DialogueDataModule`; `auto` takes a chat template where there is one, else `published` where the
            tokenizer has `<s>` and `</s>`, else `plain`.
        loss_on: As in `DialogueDataModule`.
        max_source_length: Tokens of a question at most.
        max_target_length: Tokens of an answer at most.
        **kwargs: The other arguments of `DialogueDataModule` and `TextDataModule`.

    Source: https://github.com/songys/Chatbot_data (MIT).
    """

    fields = frozenset({"question"})
    in_turns = True

    def __init__(
        self,
        model_name_or_path: str,
        path: str,
        labels: list[int] | None = None,
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
        train_split: str = "train",
        validation_split: str = "validation",
        test_split: str = "test",
        template: str = "question",
        format: Format = "auto",
        loss_on: Literal["response", "all"] = "response",
        max_source_length: int = 64,
        max_target_length: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model_name_or_path,
            path=path,
            train_split=train_split,
            validation_split=validation_split,
            test_split=test_split,
            template=template,
            format=format,
            loss_on=loss_on,
            max_source_length=max_source_length,
            max_target_length=max_target_length,
            **kwargs,
        )
        self.labels = None if labels is None else set(labels)
        self.fractions = {"validation": validation_fraction, "test": test_fraction}
        if min(self.fractions.values()) < 0 or sum(self.fractions.values()) >= 1:
            raise ParleyError(
                f"validation_fraction is {validation_fraction} and test_fraction {test_fraction}; give shares of 0 or "
                "more that leave something to train on."
            )

        if self.streaming and self.every_nth > 1:
            raise ParleyError(
                "every_nth counts ChatbotData's answers question by question, and streaming cannot; leave one of them "
                "out."
            )

    def to_rows(self, source: Rows) -> Iterator[Row]:
        """One Row per answer, grouped by question in the order of the questions' first rows."""
        by_question: dict[str, list[Row]] = defaultdict(list)
        for number in range(len(source.rows)):
            if self.labels is not None and _label(source, number) not in self.labels:
                continue
            question = source.text(number, "Q")
            by_question[question].append(
                Row({"question": question}, source.text(number, "A"), source.name(number), len(question))
            )
        for rows in by_question.values():
            yield from rows

    def in_order(self, rows: list[Row]) -> list[Row]:
        """The rows in the source's order: their ids are their numbers."""
        return sorted(rows, key=lambda row: int(row.id))

    def where(self, part: str) -> tuple[str, str]:
        """The source of a part, and the source's split that it is in."""
        return str(self._table or self.path), self._names[part]

    @cached_property
    def _names(self) -> dict[str, str]:
        """The source's split that each part is read from."""
        names = {part: split.name for part, split in self.splits.items()}
        if self._table is not None:
            return dict.fromkeys(names, "train")
        lacking = [part for part in self.fractions if names[part] in aliases(part) and not holds_split(self.path, part)]
        return names | dict.fromkeys(lacking, names["train"])

    @property
    def _table(self) -> Path | None:
        """The single file that is the whole source; None if it has splits."""
        if is_url(self.path):
            return downloaded(self.path, self.cache_dir)
        return only_table(self.path)

    def _of_part(self, part: str, rows: list[Row]) -> list[Row]:
        sharing = {other for other, name in self._names.items() if name == self._names[part]}
        return [row for row in rows if self._part_of(row.fields["question"], sharing) == part]

    def _part_of(self, question: str, sharing: set[str]) -> str:
        """Assign a question to one of the parts that share a split of the source."""
        if len(sharing) == 1:
            return next(iter(sharing))
        digest = hashlib.sha256(f"{self.seed}:{question_key(question)}".encode()).digest()
        draw, bound = int.from_bytes(digest[:8]) / 2**64, 0.0
        for part in ("test", "validation"):
            bound += self.fractions[part] if part in sharing else 0.0
            if draw < bound:
                return part
        return "train" if "train" in sharing else "validation"


def question_key(question: str) -> str:
    """A question normalised for comparison: letters and digits only, NFKC, without case."""
    text = unicodedata.normalize("NFKC", question).casefold()
    return "".join(character for character in text if character.isalnum()) or "".join(text.split())


def _label(source: Rows, number: int) -> int | None:
    row = source.rows[number]
    if "label" not in row:
        raise ParleyError(
            f"{source.places[number]} has no column 'label', by which labels chooses; leave labels out, or give a "
            "source with labels."
        )
    cell = str("" if row["label"] is None else row["label"]).strip()
    try:
        return int(float(cell)) if cell else None
    except (ValueError, OverflowError) as error:
        raise ParleyError(f"{source.places[number]}: label {cell!r} is not a number; mend it.") from error
