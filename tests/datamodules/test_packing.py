"""Packing: every token once, rows full, batches that come again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.contracts import IGNORE_INDEX, Batch
from src.datamodules import DialogSumDataModule
from src.datamodules.packing import PackedCollator, pack
from src.errors import ParleyError


@pytest.fixture
def packing(base: Callable[[str], str], tmp_path: Path, rows, jsonl) -> Callable[..., DialogSumDataModule]:
    path = jsonl(tmp_path / "rows.jsonl", rows(60))

    def make(architecture: str = "gpt2", **settings) -> DialogSumDataModule:
        settings = {"packing": True, "batch_size": 3, "max_source_length": 150, "max_target_length": 30, **settings}
        module = DialogSumDataModule(base(architecture), path=str(path), cache_dir=str(tmp_path / "cache"), **settings)
        module.setup("fit")
        return module

    return make


def test_rows_hold_each_example_once_and_are_nearly_full():
    lengths = torch.randint(3, 60, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    packed = pack(lengths, 128)
    assert sorted(number for row in packed for number in row) == list(range(500))
    assert all(sum(lengths[number] for number in row) <= 128 for row in packed)
    assert sum(lengths) / (128 * len(packed)) > 0.97
    assert pack(lengths, 128) == packed


@pytest.mark.parametrize(("lengths", "packed"), [([], []), ([5], [[0]]), ([5, 5], [[0, 1]]), ([6, 5], [[0], [1]])])
def test_few_examples(lengths, packed):
    assert pack(lengths, 10) == packed


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ParleyError, match="pack_length is 10, but the longest example has 11 tokens; raise"):
        pack([11, 3], 10)


def test_collated_row():
    examples = [
        {"id": "a", "prompt": "p", "references": ["r"], "prompt_ids": [10, 11], "target_ids": [12, 1], "learned": []},
        {"id": "b", "prompt": "q", "references": ["s"], "prompt_ids": [13], "target_ids": [14, 15, 1], "learned": []},
        {"id": "c", "prompt": "t", "references": ["u"], "prompt_ids": [16], "target_ids": [1], "learned": []},
    ]
    rows = [
        {"examples": examples[:2], "is_filler": False, "index": 0},
        {"examples": examples[2:], "is_filler": False, "index": 1},
    ]
    batch = PackedCollator(2)(rows)
    none = IGNORE_INDEX
    assert batch["input_ids"].tolist() == [[10, 11, 12, 1, 13, 14, 15, 1], [16, 1, 2, 2, 2, 2, 2, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 8, [1, 1, 0, 0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[none, none, 12, 1, none, 14, 15, 1], [none, 1] + [none] * 6]
    assert batch["id"] == ["a", "b", "c"]
    everything = PackedCollator(2, learns_prompts=True)(rows)["labels"].tolist()
    assert everything == [[none, 11, 12, 1, none, 14, 15, 1], [none, 1] + [none] * 6]
    filler = PackedCollator(2, learns_prompts=True, pad_to_multiple_of=5)([{**rows[0], "is_filler": True}])
    assert filler["labels"].tolist() == [[none] * 10]


def names(batches: list[Batch]) -> list[str]:
    return [name for batch in batches for name in batch["id"]]


def test_epochs_have_every_example_in_another_order(packing):
    loader = packing().train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        epochs.append(names(list(loader)))
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"row_{number}" for number in range(60))
    assert epochs[0] != epochs[1]


def test_an_interrupted_epoch_goes_on_where_it_was(packing):
    whole = [names([batch]) for batch in packing().train_dataloader()]
    loader = packing().train_dataloader()
    batches = iter(loader)
    begun = [names([next(batches)]) for _ in range(2)]
    resumed = packing().train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert begun + [names([batch]) for batch in resumed] == whole


def test_only_training_is_packed(packing):
    module = packing()
    assert "position_ids" in next(iter(module.train_dataloader()))
    batch = next(iter(module.val_dataloader()))
    assert "position_ids" not in batch
    assert batch["prompt_ids"].shape[1] > 0


def test_rows_are_as_long_as_both_limits_or_as_asked(packing):
    assert max(packing().train_dataloader().dataset.lengths) <= 180
    assert max(packing(pack_length=400).train_dataloader().dataset.lengths) > 180
    with pytest.raises(ParleyError, match="pack_length is 20"):
        packing(pack_length=20).train_dataloader()


def test_budget_counts_whole_rows(packing):
    shapes = [batch["input_ids"].shape for batch in packing(max_tokens_per_batch=400, batch_size=1).train_dataloader()]
    assert max(rows * width for rows, width in shapes) <= 400
    assert max(rows for rows, _ in shapes) > 1
