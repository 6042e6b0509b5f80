"""The loader's position, alone and through Lightning's checkpoints."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from src.datamodules.loader import ResumableDataLoader
from src.datamodules.sampler import LengthGroupedBatchSampler

ROOT = Path(__file__).resolve().parents[2]


class Numbers(Dataset):
    """Item i is i; fillers are negative."""

    def __getitem__(self, index: int) -> int:
        return index


def collate(items: list[int]) -> dict[str, Any]:
    return {"index": items}


def make_loader(workers: int = 0, count: int = 26, batch_size: int = 4, **options: Any) -> ResumableDataLoader:
    lengths = [1 + number % 13 for number in range(count)]
    sampler = LengthGroupedBatchSampler(lengths, batch_size=batch_size, shuffle=True, seed=5, **options)
    return ResumableDataLoader(Numbers(), sampler, collate_fn=collate, num_workers=workers)


def drawn(loader: ResumableDataLoader) -> list[list[int]]:
    return [batch["index"] for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_new_loader_goes_on_where_another_stood(workers: int) -> None:
    whole = drawn(make_loader())
    for handed in (0, 3, 7):
        loader = make_loader(workers)
        iterator = iter(loader)
        assert [next(iterator)["index"] for _ in range(handed)] == whole[:handed]
        state = loader.state_dict()  # two workers have four more batches ready by now
        assert state["batches"] == handed
        again = make_loader(workers)
        again.load_state_dict(state)
        assert again.state_dict() == state
        assert drawn(again) == whole[handed:]
        assert drawn(again) == whole, "the next time around it starts at the first batch"


def test_an_epochs_end_leads_to_the_next_epoch() -> None:
    loader = make_loader()
    loader.batch_sampler.set_epoch(1)
    drawn(loader)
    again = make_loader()
    again.load_state_dict(loader.state_dict())
    assert drawn(again) == []
    again.batch_sampler.set_epoch(2)
    loader.batch_sampler.set_epoch(2)
    assert drawn(again) == drawn(loader) != drawn(make_loader())


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_drawn_before_the_first_batch_is_asked_for(workers: int) -> None:
    loader = make_loader(workers)
    iterator = iter(loader)
    loader.batch_sampler.set_epoch(4)  # Lightning makes the iterator first
    expected = make_loader()
    expected.batch_sampler.set_epoch(4)
    assert [batch["index"] for batch in iterator] == drawn(expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_generator_is_left_alone(workers: int) -> None:
    before = torch.get_rng_state()
    drawn(make_loader(workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_process_ends_though_something_still_holds_its_workers() -> None:
    words = "ResumableDataLoader([{'id': n} for n in range(8)], sampler, num_workers=1, collate_fn=list)"
    code = f"""
from src.datamodules.loader import ResumableDataLoader
from src.datamodules.sampler import LengthGroupedBatchSampler
sampler = LengthGroupedBatchSampler([1] * 8, batch_size=2)
kept = iter({words})
print(len(next(kept)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "2\n"


def test_half_the_processes_and_twice_the_accumulation_go_on_with_the_same_shares() -> None:
    steps_done = 2
    four = [make_loader(count=60, rank=rank, world_size=4) for rank in range(4)]
    iterators = [iter(loader) for loader in four]
    for _ in range(steps_done):
        for iterator in iterators:
            next(iterator)
    state = four[0].state_dict()
    left = sorted(index for iterator in iterators for batch in iterator for index in batch["index"] if index >= 0)
    two = [make_loader(count=60, rank=rank, world_size=2, accumulate=2) for rank in range(2)]
    dealt = []
    for loader in two:
        loader.load_state_dict(state)
        assert loader.state_dict()["batches"] == 2 * steps_done
        dealt += [index for batch in drawn(loader) for index in batch if index >= 0]
    assert sorted(dealt) == left


def test_other_batches_than_the_checkpoints_are_said(caplog: pytest.LogCaptureFixture) -> None:
    state = make_loader().state_dict() | {"batches": 3}
    with caplog.at_level(logging.WARNING):
        make_loader().load_state_dict(state)
        assert not caplog.messages
        make_loader(count=40).load_state_dict(state)
    [message] = caplog.messages
    assert "7 steps an epoch and this one has 10" in message


class Recorder(LightningModule):
    """Writes down every batch that a training step gets."""

    def __init__(self, loader: ResumableDataLoader) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[int]]] = []
        self.loader = loader

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch["index"]))
        return self.weight.sum() * len(batch["index"])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        pass

    def train_dataloader(self) -> ResumableDataLoader:
        return self.loader

    def val_dataloader(self) -> ResumableDataLoader:
        return make_loader(count=5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(root: Path, workers: int, ckpt: Path | None = None, *, save: Any = None, **options: Any) -> Recorder:
    accumulate = options.get("accumulate_grad_batches", 1)
    module = Recorder(make_loader(workers, accumulate=accumulate))
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=save is not None,
        callbacks=[save] if save is not None else [],
        **options,
    )
    trainer.fit(module, ckpt_path=ckpt, weights_only=False if ckpt else None)
    return module


LIMITS: dict[str, dict[str, Any]] = {
    "epochs": {"max_epochs": 3},
    "steps": {"max_steps": 20, "max_epochs": -1},
    "without validation": {"max_epochs": 3, "limit_val_batches": 0},
    "validation within the epoch": {"max_epochs": 3, "val_check_interval": 3},
    "part of the epoch": {"max_epochs": 3, "limit_train_batches": 5},
    "accumulation": {"max_epochs": 3, "accumulate_grad_batches": 2},
}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_batches_of_one_that_never_stopped(limits: str, workers: int, tmp_path: Path) -> None:
    options = LIMITS[limits]
    save = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(tmp_path, 0, save=save, **options).seen
    accumulate = options.get("accumulate_grad_batches", 1)
    assert len({epoch for epoch, _ in whole}) == 3
    for step in (2, 7, 10) if workers else range(1, len(whole) // accumulate):  # 7 and 14 end an epoch
        resumed = fit(tmp_path, workers, tmp_path / f"step={step}.ckpt", **options).seen
        assert resumed == whole[step * accumulate :], f"resumed after step {step}"


@pytest.mark.parametrize("when", [{"save_on_train_epoch_end": True}, {"save_on_train_epoch_end": False}])
def test_resuming_from_an_epochs_end(when: dict[str, bool], tmp_path: Path) -> None:
    save = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1, **when)
    whole = fit(tmp_path, 0, save=save, max_epochs=3).seen
    for epoch, workers in itertools.product((0, 1), (0, 2)):
        resumed = fit(tmp_path, workers, tmp_path / f"epoch={epoch}.ckpt", max_epochs=3).seen
        assert resumed == [seen for seen in whole if seen[0] > epoch]


def test_a_resumed_run_can_be_resumed_again(tmp_path: Path) -> None:
    def save(name: str) -> ModelCheckpoint:
        return ModelCheckpoint(dirpath=tmp_path / name, filename="{step}", every_n_train_steps=1, save_top_k=-1)

    whole = fit(tmp_path, 0, max_epochs=3).seen
    fit(tmp_path, 0, save=save("a"), max_steps=4)
    fit(tmp_path, 0, tmp_path / "a" / "step=3.ckpt", save=save("b"), max_steps=11)
    assert fit(tmp_path, 0, tmp_path / "b" / "step=5.ckpt", max_epochs=3).seen == whole[5:]
    assert fit(tmp_path, 0, tmp_path / "b" / "step=9.ckpt", max_epochs=3).seen == whole[9:]


@pytest.mark.parametrize(("limit", "count"), [(2, 8), (0.5, 12), (1.0, 25), (100, 25)])
def test_what_a_limited_validation_takes_is_said_and_the_same(
    limit: float, count: int, module: Any, rows: Any, jsonl: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[list[str]] = []

    class Look(LightningModule):
        def validation_step(self, batch: Any) -> None:
            seen[-1] += batch["id"]

    path = jsonl(tmp_path / "dev.jsonl", rows(25))
    for seed in (1, 2):
        seen.append([])
        trainer = Trainer(limit_val_batches=limit, logger=False, accelerator="cpu", enable_progress_bar=False)
        with caplog.at_level("INFO", logger="src.datamodules"):
            trainer.validate(Look(), module(path, batch_size=4, seed=seed), verbose=False)
    assert len(seen[0]) == count
    assert seen[0] == seen[1]
    said = f"validation: limit_val_batches takes {count} of 25 examples, the same random sample every time."
    assert caplog.messages.count(said) == (2 if count < 25 else 0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_are_pinned(
    device: str, module: Any, rows: Any, jsonl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = module(jsonl(tmp_path / "dev.jsonl", rows(9)), batch_size=4)
    data.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    monkeypatch.setattr(type(data.trainer.strategy), "root_device", torch.device(device))
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert loader.pin_memory == (device == "cuda")
