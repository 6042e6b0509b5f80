"""Packing of several examples into one row, which avoids the padding of short pairs.

Position ids restart with every example; given these and no padding mask, a model attends within an example only, since
transformers infers the borders from the position ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch.utils.data import Dataset

from src.contracts import IGNORE_INDEX, Batch
from src.datamodules.cache import EncodedDataset, without_progress_bar
from src.datamodules.encoding import joined_labels, nothing_of, pad, places_to_learn
from src.errors import ParleyError


def pack(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Distribute examples to rows by best-fit decreasing.

    Args:
        lengths: Tokens of each example.
        limit: The most tokens of a row.

    Returns:
        The examples' numbers, one list per row; each number once.

    Raises:
        ParleyError: An example is longer than a row.
    """
    if not lengths:
        return []
    if max(lengths) > limit:
        raise ParleyError(
            f"pack_length is {limit}, but the longest example has {max(lengths)} tokens; raise pack_length, or lower "
            "max_source_length or max_target_length."
        )
    from datasets import Dataset as ArrowDataset
    from trl import pack_dataset

    # TRL packs lists of tokens; here each list repeats its example's number, which then shows where it was put.
    numbered = ArrowDataset.from_dict({"number": [[number] * length for number, length in enumerate(lengths)]})
    with without_progress_bar():
        packed = pack_dataset(numbered, limit, strategy="bfd", map_kwargs={"batch_size": len(lengths)})
    return [list(dict.fromkeys(row)) for row in packed["number"]]


class PackedDataset(Dataset):
    """Rows of several examples each, the same in every epoch: the sampler shuffles them.

    The index `-1 - i` gives row `i` as a filler (see `LengthGroupedBatchSampler`).

    Args:
        examples: The tokenised examples.
        lengths: Tokens of each example.
        limit: The most tokens of a row.

    Attributes:
        rows: The examples' numbers, one list per row.
        lengths: Tokens of each row.
    """

    def __init__(self, examples: EncodedDataset, lengths: Sequence[int], limit: int) -> None:
        self.examples = examples
        self.rows = pack(lengths, limit)
        self.lengths = [sum(lengths[number] for number in row) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        is_filler = index < 0
        if is_filler:
            index = -1 - index
        return {"examples": [self.examples[n] for n in self.rows[index]], "is_filler": is_filler, "index": index}


@dataclass(frozen=True)
class PackedCollator:
    """Joins the examples of each row and pads the rows into a `Batch` with `position_ids`.

    Such a batch is for training only: `prompt_ids` is empty.

    Args:
        pad_token_id: The padding of `input_ids`.
        learns_prompts: Learn the prompts' tokens too.
        pad_to_multiple_of: Round lengths up to a multiple, which is efficient on tensor cores.
    """

    pad_token_id: int
    learns_prompts: bool = False
    pad_to_multiple_of: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Make a batch from rows of `PackedDataset`."""
        inputs, labels, positions = [], [], []
        for row in rows:
            tokens = [example["prompt_ids"] + example["target_ids"] for example in row["examples"]]
            learned = [joined_labels(example, learns_prompts=self.learns_prompts) for example in row["examples"]]
            inputs.append(list(chain.from_iterable(tokens)))
            labels.append(nothing_of(inputs[-1]) if row["is_filler"] else list(chain.from_iterable(learned)))
            positions.append(list(chain.from_iterable(range(len(ids)) for ids in tokens)))
        input_ids, attention_mask = pad(inputs, self.pad_token_id, self.pad_to_multiple_of)
        examples = [example for row in rows for example in row["examples"]]
        padded = pad(labels, IGNORE_INDEX, self.pad_to_multiple_of)[0]
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=pad(positions, 0, self.pad_to_multiple_of)[0],
            labels=padded,
            learned=places_to_learn(padded, is_shifted=True),
            prompt_ids=input_ids[:, :0],
            prompt_attention_mask=attention_mask[:, :0],
            id=[example["id"] for example in examples],
            prompt=[example["prompt"] for example in examples],
            references=[example["references"] for example in examples],
            is_filler=[row["is_filler"] for row in rows],
            index=[row["index"] for row in rows],
        )
