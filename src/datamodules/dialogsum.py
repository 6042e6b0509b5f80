"""DialogSum: dialogues and their summaries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from src.datamodules.dialogue import DialogueDataModule
from src.datamodules.rows import Row
from src.datamodules.sources import Rows


class DialogSumDataModule(DialogueDataModule):
    """DialogSum, from the hub, in its authors' own JSONL, or anything with the same columns.

    The hub's test split has one row per reference (`test_0_1` to `test_0_3`) and the authors' three summaries per row
    (`test_0`); both give the same examples with the same ids. `min_chars` and `max_chars` count the dialogue's
    characters.

    The arguments are those of `DialogueDataModule` and `TextDataModule`. Chen et al., 2021, https://arxiv.org/abs/2105.06762.
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
        """One Row per summary."""
        for number, cells in enumerate(source.rows):
            dialogue = source.text(number, "dialogue")
            name = str(cells.get("id") or cells.get("fname") or source.name(number))
            keys = [key for key in cells if key.startswith("summary") and key[7:].isdigit()]
            for key in sorted(keys, key=lambda key: int(key[7:])) or ["summary"]:
                own_name = name + key.replace("summary", "_") if keys else name
                yield Row({"dialogue": dialogue}, source.text(number, key), own_name, len(dialogue))
