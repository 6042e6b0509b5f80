"""Examples that stay on the disk until they are wanted: larger data than memory holds.

One pass over the source finds what the examples are (`row_index`); a training step then reads, fills and tokenises what
it takes, so that nothing is held but a buffer.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset as ArrowDataset
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from src.datamodules import checks
from src.datamodules.cache import EncodedDataset
from src.datamodules.row_index import RowIndex, in_both, indexed, question_digest
from src.datamodules.rows import Notes, Row, without_empty
from src.datamodules.sources import Rows
from src.datamodules.stored_rows import StoredRow, StoredRows, stored_rows
from src.errors import ParleyError

if TYPE_CHECKING:
    from src.datamodules.base import TextDataModule

log = logging.getLogger(__name__)
SAMPLE, STRETCHES = 1_000, 10  # examples that are looked at before training, and the places that they are from
# Settings of a DataModule that do not change which rows are examples.
UNIMPORTANT = (
    *("model_name_or_path", "gguf_file", "trust_remote_code", "format", "loss_on", "packing", "pack_length"),
    *("batch_size", "max_tokens_per_batch", "group_by_length", "max_source_length", "max_target_length"),
    *("num_workers", "pad_to_multiple_of", "cache_dir", "shuffle_buffer", "streaming", "splits", "datasets"),
    *("_configs", "_examples", "_kept_text", "_streamed", "_tokenizer"),
)


class StreamedRows:
    """A split's rows on the disk, and the examples that they are.

    Args:
        data: Says what a row means.
        part: `train`, `validation` or `test`.

    Raises:
        ParleyError: The source cannot be read, or nothing is left of the split.
    """

    def __init__(self, data: TextDataModule, part: str) -> None:
        self.data = data
        self.part = part
        path, split = data.where(part)
        self.stored: StoredRows = stored_rows(path, split)
        key = [self.stored.key(), _settings(data), part]
        self.index: RowIndex = indexed(data.cache_dir, key, data.splits[part], self._scan)
        if not len(self.index):
            raise ParleyError(
                f"the {part} split of {self.stored.origin} is empty after every_nth, min_chars, max_chars and the "
                "slice; widen them or name another split."
            )

    def __len__(self) -> int:
        return len(self.index)

    def lengths(self, start: int, stop: int) -> Tensor:
        """Characters of some examples, by which they are grouped: (stop - start,)."""
        return torch.from_numpy(self.index.entries(start, stop)["size"].astype("int64"))

    def examples(self, start: int, stop: int) -> list[Any]:
        """Some examples, read now.

        Args:
            start: The first.
            stop: The one after the last.

        Raises:
            ParleyError: The source cannot be read, or has changed since its rows were counted.
        """
        return [self.data.examples_of(row)[number] for row, number in self._read(start, stop)]

    def rows(self, *, speaks: bool) -> list[Row]:
        """All rows at once, for a split that is small enough.

        Args:
            speaks: Whether this process is the one that logs what is left out.
        """
        if speaks:
            self.index.notes.tell(self.stored.origin)
        return [row for row, number in self._read(0, len(self)) if number == 0]

    def _scan(self, notes: Notes) -> Iterator[tuple[int, ...]]:
        """Entries of all that is left after the filters."""
        data, origin = self.data, self.stored.origin
        longest = math.inf if data.max_chars is None else data.max_chars
        count = 0
        for number, stored in enumerate(self.stored.scan()):
            for answer, row in enumerate(self._rows_of(stored, number, notes)):
                count += 1
                if (count - 1) % data.every_nth or not without_empty([row], origin, notes, strict=data.strict):
                    continue
                if data.min_chars < row.size <= longest:
                    question = question_digest(row.fields)
                    for place, example in enumerate(data.examples_of(row)):
                        yield stored.place, number, answer, place, data.characters(example), question

    def _rows_of(self, stored: StoredRow, number: int, notes: Notes) -> list[Row]:
        source = Rows([stored.cells], [stored.name], self.stored.origin, number, notes)
        return self.data.rows_of(self.part, source)

    def _read(self, start: int, stop: int) -> Iterator[tuple[Row, int]]:
        """Rows, and which of the examples of each is meant."""
        entries = self.index.entries(start, stop).tolist()
        together = {place: list(same) for place, same in groupby(entries, key=itemgetter(0))}
        for (place, same), cells in zip(together.items(), self.stored.read(list(together)), strict=True):
            number = same[0][1]
            rows = self._rows_of(StoredRow(place, f"{self.stored.origin}, row {number + 1}", cells), number, Notes())
            for _, _, answer, example, _, question in same:
                row = rows[answer] if answer < len(rows) else Row()
                if question_digest(row.fields) != question:
                    raise ParleyError(
                        f"{self.stored.origin} is no longer what it was when its rows were counted; leave it as it is "
                        f"while training reads it, or remove {self.index.directory} and start again."
                    )
                yield row, example

    def look(self, *, speaks: bool) -> None:
        """Look at some examples from all over the split before any is trained on.

        Args:
            speaks: Whether this process is the one that logs.

        Raises:
            ParleyError: The tokenizer is for another language, or examples may be longer than the model can read.
        """
        data = self.data
        checks.refuse_long_limits(data.limits(), data.model_config, joined=not data.is_encoder_decoder)
        count = len(self)
        length = SAMPLE // STRETCHES if count > SAMPLE else count
        starts = range(0, count, max(1, -(-count // STRETCHES))) if count > SAMPLE else [0]
        examples = [example for at in starts for example in self.examples(at, min(at + length, count))]
        sample = EncodedDataset(ArrowDataset.from_list([dict(row) for row in data.encode(examples)]))
        if speaks:
            log.info("%s: %s examples, read as they are wanted.", self.part, f"{count:,}")
            self.index.notes.tell(self.stored.origin)
            checks.report(f"{self.part}, a sample of it", sample, data.limits())
        checks.check_survival(self.part, sample, data.answers, data.model_name_or_path, speaks=speaks)

    def warn_of_overlap(self, validation: StreamedRows) -> None:
        """Say how many questions of validation the model is trained on."""
        both, asked = in_both(self.index, validation.index)
        if both:
            checks.say_overlap(both, f"{asked} questions")


class StreamedDataset(Dataset):
    """Examples by number, read and tokenised as they are asked for.

    Those that a sampler takes together are read together, and stay in memory until others take their place. The index
    `-1 - i` gives example `i` as a filler (see `DealtBatchSampler`).

    Args:
        rows: The split.
        stretch: Examples that are read together.
        stretches: Of them in memory at most.
    """

    def __init__(self, rows: StreamedRows, stretch: int, stretches: int) -> None:
        self.rows = rows
        self.stretch = stretch
        self.stretches = stretches
        self._buffer: dict[int, list[Any]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of a batch, as `EncodedDataset` has them; DataLoaders ask for all at once where they can."""
        numbers = [-1 - index if index < 0 else index for index in indices]
        encoded = self.rows.data.encode([self._example(number) for number in numbers])
        return [
            {**row, "is_filler": index < 0, "index": number}
            for row, index, number in zip(encoded, indices, numbers, strict=True)
        ]

    def _example(self, number: int) -> Any:
        stretch, place = divmod(number, self.stretch)
        if stretch not in self._buffer:
            while len(self._buffer) >= self.stretches:
                del self._buffer[next(iter(self._buffer))]
            start = stretch * self.stretch
            self._buffer[stretch] = self.rows.examples(start, min(start + self.stretch, len(self)))
        return self._buffer[stretch][place]


def _settings(data: TextDataModule) -> list[Any]:
    """What of a DataModule decides which rows are examples: its settings and its code, JSON-serialisable."""
    kind, others = type(data), vars(LightningDataModule()).keys() | set(UNIMPORTANT)
    settings = {
        name: value
        for name, value in vars(data).items()
        if name not in others and not isinstance(inspect.getattr_static(kind, name, None), cached_property)
    }
    code = hashlib.sha256()
    for each in kind.__mro__[: kind.__mro__.index(LightningDataModule)]:
        try:
            code.update(inspect.getsource(inspect.getmodule(each) or each).encode())
        except (OSError, TypeError):  # made at a prompt: there is no file of it
            code.update(repr(each).encode())
    text = json.dumps(settings, sort_keys=True, default=_plain)
    return [kind.__qualname__, code.hexdigest(), text, data.is_encoder_decoder]


def _plain(value: object) -> Any:
    return sorted(map(repr, value)) if isinstance(value, (set, frozenset)) else repr(value)
