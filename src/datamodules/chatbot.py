"""ChatbotData: questions and their answers, in Korean."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from src.datamodules.base import DialogueDataModule, Row
from src.datamodules.download import downloaded, is_url
from src.datamodules.formats import Format
from src.datamodules.sources import Rows, read_split
from src.errors import ParleyError
from src.files import ROW_SUFFIXES


class ChatbotDataModule(DialogueDataModule):
    """ChatbotData's `Q,A,label`, or any table with a question and an answer in columns of these names.

    A source that is one table (a file, a web address, a directory with one file, a hub dataset with one split) is
    dealt into the three splits by question: equal questions, spaces, punctuation, case and Unicode composition aside,
    fall into the same one. Where a question falls depends on the seed and on itself alone, so that it stays there when
    rows are added or labels chosen. Splits that the source has under names of their own are taken as they are.

    The published encoding is `<s>question</s><s>answer</s>`, of 128 tokens at most, and every token is learned (set
    `loss_on: all`).

    Args:
        model_name_or_path: Whose tokenizer and architecture to prepare for. The command links it to the model's.
        path: A file, an http(s) address, a directory or a hub name.
        labels: Keep rows with one of these labels (0 everyday, 1 parting, 2 love); all rows when left out.
        validation_fraction: Share of the questions for validation, where one table is dealt.
        test_fraction: Share of the questions for testing, where one table is dealt.
        train_split: The source's split to train on; the parts that name the same one share it.
        validation_split: The source's split for validation.
        test_split: The source's split for testing and predicting.
        template: A prompt template's name or text; it has `{question}`.
        format: As in `DialogueDataModule`; `auto` takes a chat template where there is one, else `published` where the
            tokenizer has `<s>` and `</s>`, else `plain`.
        loss_on: As in `DialogueDataModule`.
        max_source_length: Tokens of a question at most.
        max_target_length: Tokens of an answer at most.
        **kwargs: The other arguments of `DialogueDataModule`.

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
        validation_split: str = "train",
        test_split: str = "train",
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

    def to_rows(self, source: Rows) -> Iterator[Row]:
        """One row an answer, in the order in which the questions come first."""
        by_question: dict[str, list[Row]] = defaultdict(list)
        for number in range(len(source.rows)):
            if self.labels is not None and _label(source, number) not in self.labels:
                continue
            question = source.text(number, "Q")
            by_question[question].append(
                Row({"question": question}, source.text(number, "A"), str(number), len(question))
            )
        for rows in by_question.values():
            yield from rows

    def _read(self, part: str) -> Rows:
        return read_split(str(self._table or self.path), self.splits[part].name)

    @property
    def _table(self) -> Path | None:
        """The one file that is the whole source."""
        if is_url(self.path):
            return downloaded(self.path, self.cache_dir)
        place = Path(self.path).expanduser()
        if place.is_dir():
            files = [file for file in place.iterdir() if file.suffix.lower() in ROW_SUFFIXES]
            return files[0] if len(files) == 1 else None
        return place if place.is_file() else None

    def _of_part(self, part: str, rows: list[Row]) -> list[Row]:
        one_table = self._table is not None
        name = self.splits[part].name
        sharing = {other for other, split in self.splits.items() if one_table or split.name == name}
        return [row for row in rows if self._part_of(row.fields["question"], sharing) == part]

    def _part_of(self, question: str, sharing: set[str]) -> str:
        """Deal a question to one of the parts that share a source."""
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
    """What two spellings of a question have in common: letters and digits, composed, without case."""
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
