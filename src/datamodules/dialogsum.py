"""DialogSum: dialogues and their summaries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from src.datamodules.base import DialogueDataModule, Row
from src.datamodules.sources import Rows, require_columns


class DialogSumDataModule(DialogueDataModule):
    """DialogSum, from the hub, in its authors' own JSONL, or anything with the same columns.

    The hub's test split has one row a reference and the authors' has three summaries in a row; both give the same
    examples. A row's characters, for `min_chars` and `max_chars`, are its dialogue's.

    The arguments are those of `DialogueDataModule`. Chen et al., 2021, https://arxiv.org/abs/2105.06762.
    """

    fields = frozenset({"dialogue"})

    def __init__(
        self,
        model_name_or_path: str,
        path: str = "knkarthick/dialogsum",
        template: str = "summarize",
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, path=path, template=template, **kwargs)

    def to_rows(self, source: Rows) -> Iterator[Row]:
        """One row a summary."""
        require_columns(source, ["dialogue"])
        if source.rows and "summary1" not in source.rows[0]:
            require_columns(source, ["summary"])
        for number, row in enumerate(source.rows):
            dialogue = _text(row.get("dialogue"))
            name = str(row.get("id") or row.get("fname") or number)
            keys = sorted(key for key in row if key.startswith("summary") and key[7:].isdigit()) or ["summary"]
            for key in keys:
                yield Row({"dialogue": dialogue}, _text(row.get(key)), name, len(dialogue))


def _text(cell: object) -> str:
    return "" if cell is None else str(cell)
