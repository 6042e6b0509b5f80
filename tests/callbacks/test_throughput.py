from __future__ import annotations

import csv
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from src.callbacks import Throughput
from src.callbacks.throughput import real_tokens, time

BATCH = {
    "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]),
    "labels": torch.tensor([[5, 1, -100], [1, -100, -100]]),
}


def test_padding_is_not_counted():
    assert real_tokens(BATCH, is_encoder_decoder=True) == 4 + 3
    assert real_tokens(BATCH, is_encoder_decoder=False) == 4  # prompt and target are one sequence


class _Module(LightningModule):
    """Takes two seconds a batch, by a clock that the test turns."""

    is_encoder_decoder = True

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.clock["now"] += 2.0
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_figure_reaches_the_logger_whenever_it_logs(tmp_path, monkeypatch, accumulate):
    clock = {"now": 100.0}
    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        log_every_n_steps=3,
        accumulate_grad_batches=accumulate,
        logger=CSVLogger(tmp_path, name="", version=""),
        callbacks=[Throughput()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = torch.utils.data.DataLoader([BATCH] * 6 * accumulate, batch_size=None)
    trainer.fit(_Module(clock), batches)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 5]
    assert [float(row["train/tokens_per_second"]) for row in rows] == [3.5, 3.5]


@pytest.mark.parametrize(("device", "expected"), [("cpu", []), ("cuda", [3.0])])
def test_a_gpus_peak_memory_is_logged(monkeypatch, device, expected):
    logged: list[tuple[str, float]] = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 3 * 2**20)
    monkeypatch.setattr("src.callbacks.throughput.logs_this_step", lambda _trainer: True)
    monkeypatch.setattr("src.callbacks.throughput.is_accumulating", lambda _trainer: False)
    monkeypatch.setattr("src.callbacks.throughput.torch.as_tensor", lambda tokens, **_: tokens)  # there is no GPU
    module = SimpleNamespace(
        is_encoder_decoder=True, device=torch.device(device), log=lambda name, value: logged.append((name, value))
    )
    Throughput().on_train_batch_end(SimpleNamespace(world_size=1), module, None, BATCH, 0)
    assert [value for name, value in logged if name == "train/peak_memory_mib"] == expected
