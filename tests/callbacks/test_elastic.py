"""Chains of resumed runs that cut the same global batches otherwise: nothing is lost, repeated or left out."""

from __future__ import annotations

import contextlib
import csv
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, StochasticWeightAveraging
from torch.utils.data import Dataset

from src.callbacks import AtomicCheckpointIO, Checkpoints, ExactResume, RunLogger
from src.contracts import CHECKPOINT_FORMAT
from src.datamodules.loader import ResumableDataLoader
from src.datamodules.sampler import LengthGroupedBatchSampler
from src.errors import ParleyError

GLOBAL_BATCH, EXAMPLES, EPOCHS = 8, 44, 3  # 6 steps an epoch, the last of 4 examples


class Cut(Exception):
    """The power goes."""


class Numbers(Dataset):
    def __getitem__(self, index: int) -> int:
        return index


class Recorder(LightningModule):
    """Writes down the examples of each optimiser step that was taken, and where it validated."""

    def __init__(self, accumulate: int, cut_after: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.accumulate, self.cut_after = accumulate, cut_after
        self.waiting: list[int] = []
        self.steps: dict[int, tuple[int, list[int]]] = {}
        self.validations: list[int] = []
        self.batches = 0

    def training_step(self, batch: list[int], batch_idx: int) -> torch.Tensor:
        if self.batches == self.cut_after:
            raise Cut
        self.batches += 1
        self.waiting += [index for index in batch if index >= 0]
        loss = self.weight.sum() * len(batch)
        self.log("train/loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.steps[self.global_step] = (self.current_epoch, sorted(self.waiting))
        self.waiting = []

    def validation_step(self, batch: list[int], batch_idx: int) -> None:
        self.log("val/loss", 1.0, batch_size=1)

    def on_validation_epoch_end(self) -> None:
        self.validations.append(self.global_step)

    def train_dataloader(self) -> ResumableDataLoader:
        lengths = [1 + number % 13 for number in range(EXAMPLES)]
        size = GLOBAL_BATCH // self.accumulate
        sampler = LengthGroupedBatchSampler(lengths, batch_size=size, shuffle=True, seed=5, accumulate=self.accumulate)
        return ResumableDataLoader(Numbers(), sampler, collate_fn=list)

    def val_dataloader(self) -> ResumableDataLoader:
        return ResumableDataLoader(Numbers(), LengthGroupedBatchSampler([1, 1], batch_size=1), collate_fn=list)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(root: Path, accumulate: int, every: int, cut_after: int = -1, **options: Any) -> Recorder:
    """One run, or what comes of it until it is cut off; goes on from the newest checkpoint."""
    module = Recorder(accumulate, cut_after)
    callbacks = options.pop("callbacks", [])
    newest = sorted((root / "run" / "checkpoints").glob("step=*"), key=lambda file: file.stat().st_mtime_ns)[-1:]
    if not newest:
        shutil.rmtree(root, ignore_errors=True)  # a run that goes on from none has a directory of its own
    trainer = Trainer(
        accelerator="cpu",
        accumulate_grad_batches=1 if callbacks else accumulate,
        log_every_n_steps=1,
        logger=RunLogger(str(root), name="", version="run"),
        callbacks=[*callbacks, ExactResume(), Checkpoints(every_n_steps=every)],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **{"max_epochs": EPOCHS, **options},
    )
    with contextlib.suppress(Cut):
        trainer.fit(module, ckpt_path=newest[0] if newest else None)
    return module


def log_of(root: Path) -> list[tuple[str, ...]]:
    with (root / "run" / "metrics.csv").open() as stream:
        return [
            (row["step"], row["epoch"], bool(row.get("train/loss")), bool(row.get("val/loss")))
            for row in csv.DictReader(stream)
        ]


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """A checkpoint of Parley's says so."""
    record = {
        "format": CHECKPOINT_FORMAT,
        "version": "0",
        "base": {"name": "none"},
        "config": {},
    }  # as of a Module of ours
    monkeypatch.setattr(Recorder, "on_save_checkpoint", lambda self, checkpoint: checkpoint.update(parley=record))


WITHIN: list[dict[str, Any]] = [{}, {"val_check_interval": 0.5}, {"check_val_every_n_epoch": 2}]


@pytest.mark.parametrize("seed", range(12))
def test_chains(tmp_path, seed):
    draw = random.Random(seed)
    every, options = draw.choice([1, 2, 3, 100]), WITHIN[seed % 3]
    whole = fit(tmp_path / "whole", 1, every, **options)
    steps: dict[int, tuple[int, list[int]]] = {}
    validations: list[int] = []
    said = []
    for turn in range(5):
        accumulate = draw.choice([1, 2, 4])
        cut = draw.randrange(1, 10 * accumulate) if turn < 4 else -1
        said.append((accumulate, cut))
        part = fit(tmp_path / "chain", accumulate, every, cut, **options)
        start = min(part.steps, default=None)
        steps |= part.steps
        if start is not None:
            validations = [step for step in validations if step <= start]
        validations += [step for step in part.validations if step not in validations]
    assert steps == whole.steps, (every, said)
    assert validations == whole.validations, (every, said)
    assert log_of(tmp_path / "chain") == log_of(tmp_path / "whole"), (every, said)


@pytest.mark.parametrize("cut", [3, 7, 9, 14])
def test_accumulation_by_epoch(tmp_path, cut):
    """Another accumulation from the second epoch on, also for a run that is cut off within it."""

    def schedule() -> GradientAccumulationScheduler:
        return GradientAccumulationScheduler({0: 1, 1: 2, 2: 3})

    whole = fit(tmp_path / "whole", 1, 1, callbacks=[schedule()])
    first = fit(tmp_path / "cut", 1, 1, cut, callbacks=[schedule()])
    second = fit(tmp_path / "cut", 1, 1, callbacks=[schedule()])
    assert len(whole.steps) == 6 + 3 + 2
    assert first.steps | second.steps == whole.steps
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")


def test_early_stopping_stays_stopped(tmp_path):
    """The metric never gets better: it stops after two validations, and so when it is started again."""

    def stopping(patience: int) -> EarlyStopping:
        return EarlyStopping("val/loss", patience=patience)

    whole = fit(tmp_path, 1, 1, callbacks=[stopping(1)], max_epochs=9)
    assert whole.validations == [6, 12]
    again = fit(tmp_path, 1, 1, callbacks=[stopping(1)], max_epochs=9)
    assert not again.steps
    more = fit(tmp_path, 1, 1, callbacks=[stopping(3)], max_epochs=9)  # the new patience holds
    assert more.validations == [18, 24]


def test_early_stopping_counts_on(tmp_path):
    fit(tmp_path, 1, 1, cut_after=8, callbacks=[EarlyStopping("val/loss", patience=2)], max_epochs=9)
    assert fit(tmp_path, 1, 1, callbacks=[EarlyStopping("val/loss", patience=2)], max_epochs=9).validations == [12, 18]


def test_averages_that_could_not_go_on_are_refused(tmp_path):
    with pytest.raises(ParleyError, match="StochasticWeightAveraging"):
        fit(tmp_path, 1, 1, callbacks=[StochasticWeightAveraging(0.1)])
