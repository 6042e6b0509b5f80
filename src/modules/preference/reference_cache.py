"""A disk cache of the reference's values on a split, so that its weights need not be kept in memory."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Trainer
from torch import Tensor

from src.contracts import PreferenceBatch
from src.errors import ParleyError
from src.writing import whole_file

log = logging.getLogger(__name__)
VERSION = 1  # raise it when the meaning of cached values changes
SAY_EVERY = 10.0  # seconds between log lines
Record = dict[int, list[Any]]
"""The cached values of each row of a split, by row number."""


class ReferenceCache:
    """Reads the reference's values on a split from disk, or computes them, shared among all processes.

    A file is named by a hash of everything that its content depends on, and is written atomically. A file that cannot
    be read is computed again.

    Args:
        directory: The cache's directory.
        trainer: The trainer whose processes share the work.
        about: What the content depends on beside the split, JSON-serialisable: weights, precision and so on.
    """

    def __init__(self, directory: Path, trainer: Trainer, about: list[Any]) -> None:
        self.directory = directory
        self.trainer = trainer
        self.about = about

    def records(
        self,
        what: str,
        batches: Callable[[], Iterable[PreferenceBatch]],
        make: Callable[[PreferenceBatch], list[list[Any]]],
        about: list[Any],
    ) -> Record:
        """The cached values of each row; every process must call this.

        Args:
            what: The name of the values, for the log.
            batches: Gives this process's share of the split, the same at each call.
            make: Computes the values of each row of a batch, fillers included.
            about: What these values depend on beside the split and the cache's own `about`.
        """
        digests = self._gathered({index: digest for batch in batches() for index, digest in _digests(batch)})
        key = json.dumps([VERSION, what, self.about, about, sorted(digests.items())], sort_keys=True, default=str)
        file = self.directory / f"reference-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        found: Record | None = None
        if self.trainer.is_global_zero:
            found = _read(file, len(digests))
        found = self.trainer.strategy.broadcast(found)
        if found is not None:
            log.info("%s of the reference: %d rows from %s", what, len(found), file)
            return found
        made: Record = {}
        for batch in self._told(what, batches(), len(digests)):
            rows = zip(batch["index"], make(batch), batch["is_filler"], strict=True)
            made |= {index: row for index, row, is_filler in rows if not is_filler}
        made = self._gathered(made)
        if self.trainer.is_global_zero:
            with whole_file(file) as stream:
                json.dump(sorted(made.items()), stream)
        return made

    def _gathered(self, own: dict[int, Any]) -> dict[int, Any]:
        if self.trainer.world_size == 1:
            return own
        parts: list[dict[int, Any]] = [{} for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather_object(parts, own)
        return {index: row for part in parts for index, row in part.items()}

    def _told(self, what: str, batches: Iterable[PreferenceBatch], rows: int) -> Iterator[PreferenceBatch]:
        """Iterate over the batches, logging the start, the progress and the end."""
        speaks, done, told = self.trainer.is_global_zero, 0, time.monotonic()
        if speaks:
            log.info("%s of the reference: %d rows, once for this model and these pairs …", what, rows)
        for batch in batches:
            yield batch
            done += sum(not is_filler for is_filler in batch["is_filler"])
            if speaks and time.monotonic() - told > SAY_EVERY:
                told = time.monotonic()
                log.info("%s of the reference: some %d of %d rows", what, done * self.trainer.world_size, rows)
        if speaks:
            log.info("%s of the reference: done", what)


def limited(loader: Any, limit: float) -> Iterator[Any]:
    """The batches of a loader up to a trainer's limit.

    Args:
        loader: The loader; it needs a length if the limit is a share.
        limit: A number of batches or, as a float, a share of them.
    """
    return islice(loader, int(limit * len(loader)) if isinstance(limit, float) else limit)


def _digests(batch: PreferenceBatch) -> Iterator[tuple[int, str]]:
    """Row number and token hash of each pair, without fillers; of the prompt alone if a batch has no answers."""
    names = [("prompt_ids", "prompt_attention_mask", 1)]
    if "answer_ids" in batch:
        names.append(("answer_ids", "answer_mask", 2))
    for row, (index, is_filler) in enumerate(zip(batch["index"], batch["is_filler"], strict=True)):
        if is_filler:
            continue
        digest = hashlib.sha256()
        for ids, mask, times in names:
            values: Tensor = batch[ids]  # type: ignore[literal-required]
            where: Tensor = batch[mask]  # type: ignore[literal-required]
            for turn in range(times):
                place = row + turn * len(batch["index"])
                digest.update(json.dumps(values[place][where[place].bool()].tolist()).encode())
        yield index, digest.hexdigest()[:32]


def _read(file: Path, rows: int) -> Record | None:
    """A file's content; None if it is missing or unusable."""
    if not file.is_file():
        return None
    try:
        found = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        log.warning("%s cannot be used (%s); it is made anew.", file, error)
        return None
    return found if len(found) == rows else None


def table(records: Record, *, nothing: float = math.nan) -> Tensor:
    """Log-probabilities as a table by row number, (rows, 2); NaN where a split has no such row.

    Args:
        records: Two values for each row.
        nothing: The value for rows that are missing.

    Raises:
        ParleyError: There are no records.
    """
    if not records:
        raise ParleyError("the training data has no pair; give some.")
    rows = torch.full((max(records) + 1, 2), nothing, dtype=torch.float32)
    rows[list(records)] = torch.tensor(list(records.values()), dtype=torch.float32)
    return rows
