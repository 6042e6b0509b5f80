"""The base of DataModules of prompts and right answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch.utils.data import Dataset

from src.contracts import Example
from src.datamodules.base import TextDataModule
from src.datamodules.encoding import Collator, encode_examples
from src.datamodules.packing import PackedCollator, PackedDataset
from src.datamodules.rows import Row
from src.datamodules.splits import row_numbers
from src.datamodules.templates import fill
from src.errors import ParleyError
from src.ranges import COUNT


class DialogueDataModule(TextDataModule):
    """Base of the DataModules of prompts and right answers.

    Args:
        model_name_or_path: Whose tokenizer and architecture to prepare for. The command links it to the model's.
        path: A hub name, a directory, a file (.jsonl, .csv, .parquet) or a directory saved by `datasets`.
        loss_on: What a decoder-only model learns: the `response` alone, or `all` tokens, as the published chatbot does.
        packing: In training, put several examples into one row, kept apart, instead of padding each to the longest. For
            decoder-only models; batch sizes then count rows.
        pack_length: The most tokens of such a row; `max_source_length` plus `max_target_length` when left out.
        **kwargs: The arguments of every DataModule (`TextDataModule`).
    """

    def __init__(
        self,
        model_name_or_path: str,
        path: str,
        loss_on: Literal["response", "all"] = "response",
        packing: bool = False,
        pack_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, path, **kwargs)
        self.loss_on = loss_on
        self.packing = packing
        self.pack_length = pack_length
        COUNT.refuse("pack_length", pack_length)
        if packing and self.streaming:
            raise ParleyError(
                "packing wants the length of every example, which streaming learns as it goes; leave one of them out."
            )

    def examples(self, part: str) -> list[Example]:
        """Read and filter a split, and take the part that is asked for.

        Args:
            part: `train` gives one example per right answer; `validation` and `test` give one per question, with all
                its answers as references.

        Raises:
            ParleyError: The source cannot be read, or nothing is left of the split.
        """
        groups = self.groups(part)
        if part == "train":
            return [example for group in groups for row in group for example in self.examples_of(row)]
        return [
            Example(fill(self.template, group[0].fields), group[0].target, [row.target for row in group], group[0].id)
            for group in groups
        ]

    def examples_of(self, row: Row) -> list[Example]:
        """What is learned from a row."""
        return [Example(fill(self.template, row.fields), row.target, [row.target], row.id)]

    def numbered(self, part: str, rows: str) -> list[Example]:
        """Rows by their numbers in the source, one per right answer, ignoring filters and slices.

        DialogSum's test split is numbered as on the hub, also in its authors' files: row i is dialogue i // 3,
        reference i % 3.

        Args:
            part: `train`, `validation` or `test`.
            rows: As for `row_numbers`.

        Raises:
            ParleyError: The source cannot be read, or has no such row.
        """
        source = self._read(part)
        found = self.in_order(list(self.to_rows(source)))
        chosen = [found[number] for number in row_numbers(rows, len(found), source.origin)]
        return [Example(fill(self.template, row.fields), row.target, [row.target], row.id) for row in chosen]

    def in_order(self, rows: list[Row]) -> list[Row]:
        """The result of `to_rows` in the source's order."""
        return rows

    def encode(self, examples: Sequence[Example]) -> Sequence[Mapping[str, Any]]:
        """Tokenise examples, one cache row each."""
        return encode_examples(
            examples,
            self.tokenizer,
            is_encoder_decoder=self.is_encoder_decoder,
            format=self.resolved_format,
            max_source_length=self.max_source_length,
            max_target_length=self.max_target_length,
        )

    def refuse_misfits(self, module: object) -> None:
        """Refuse a Module that learns from pairs, and decoder-only settings for an encoder-decoder."""
        super().refuse_misfits(module)
        if not self.is_encoder_decoder:
            return
        for name, is_set in (("loss_on: all", self.loss_on == "all"), ("packing: true", self.packing)):
            if is_set:
                raise ParleyError(
                    f"{name} is for decoder-only models, and {self.model_name_or_path!r} is an encoder-decoder; "
                    "leave it out, or give another model."
                )

    def training_dataset(self, lengths: list[int]) -> tuple[Dataset, list[int]]:
        """The examples, packed if `packing` is set."""
        if not self.packing:
            return super().training_dataset(lengths)
        row_length = self.pack_length or self.max_source_length + self.max_target_length
        packed = PackedDataset(self.datasets["train"], lengths, row_length)
        return packed, packed.lengths

    def collator(self, *, training: bool) -> Callable[[Sequence[Any]], Any]:
        """The collate function, from rows to a `Batch`."""
        pad_token_id, learns_prompts = self.tokenizer.pad_token_id, self.loss_on == "all"
        if training and self.packing:
            return PackedCollator(pad_token_id, learns_prompts, self.pad_to_multiple_of)
        return Collator(pad_token_id, self.is_encoder_decoder, learns_prompts, self.pad_to_multiple_of)
