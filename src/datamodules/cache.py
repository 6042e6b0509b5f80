"""A disk cache of tokenised examples, one directory per set of examples and settings."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset as ArrowDataset
from datasets import config, disable_progress_bars, enable_progress_bars, load_from_disk
from datasets.utils import are_progress_bars_disabled
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from src.datamodules.download import ADVICE
from src.errors import ParleyError
from src.writing import writing


class EncodedDataset(Dataset):
    """Rows of the cache by number.

    The index `-1 - i` gives row `i` as a filler (see `LengthGroupedBatchSampler`).

    Args:
        rows: The memory-mapped rows.
    """

    def __init__(self, rows: ArrowDataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        is_filler = index < 0
        if is_filler:
            index = -1 - index
        return {**self.rows[index], "is_filler": is_filler, "index": index}

    def lengths(self, column: str) -> list[int]:
        """Tokens in a column of ids, row by row."""
        import pyarrow.compute

        return pyarrow.compute.list_value_length(self.rows.data.column(column)).to_pylist()


def default_cache_dir() -> Path:
    """The default directory of the cache, beside the caches of `datasets`."""
    return Path(config.HF_DATASETS_CACHE).parent / "parley"


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of a tokenizer's behaviour: of its whole pipeline, or of its vocabulary if it is not a fast one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    special = json.dumps([tokenizer.special_tokens_map, tokenizer.chat_template], default=str, sort_keys=True)
    return hashlib.sha256((type(tokenizer).__name__ + text + special).encode()).hexdigest()


def cached(cache_dir: Path, key: Sequence[Any], make: Callable[[], Sequence[Mapping[str, Any]]]) -> EncodedDataset:
    """Load rows from the cache, or make and store them.

    The directory is written under a temporary name and renamed, so that it is safe if two processes make the same rows
    at once, or one is killed.

    Args:
        cache_dir: The cache's directory.
        key: Everything that the rows depend on, JSON-serialisable.
        make: Makes the rows.

    Raises:
        ParleyError: The cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    directory = cache_dir / digest
    if not directory.exists():
        rows = ArrowDataset.from_list([dict(row) for row in make()])
        temporary = cache_dir / f".{digest}-{uuid.uuid4().hex}"
        try:
            with writing(cache_dir, ADVICE):
                with without_progress_bar():
                    rows.save_to_disk(str(temporary))
                temporary.rename(directory)
        except ParleyError:
            if not directory.exists():  # another process may have been faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return EncodedDataset(load_from_disk(str(directory)))


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Within the block switch off the progress bars of `datasets`."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
