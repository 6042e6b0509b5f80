"""The table of samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from src.callbacks import SampleTable
from src.datamodules import DialogSumDataModule


class Answers(LightningModule):
    """Answers every prompt with its name."""

    def validation_step(self, batch: Any) -> dict[str, Any]:
        return {"predictions": batch["id"]}


def test_a_limited_validation_still_fills_the_table(
    tiny_base: Callable[..., Path], sample: Path, tmp_path: Path
) -> None:
    tables = []
    for number in range(2):
        trainer = Trainer(
            default_root_dir=tmp_path / str(number),
            limit_val_batches=3,
            logger=False,
            callbacks=[SampleTable(num_samples=5)],
            enable_progress_bar=False,
            accelerator="cpu",
        )
        options = {"batch_size": 4, "cache_dir": str(tmp_path / "cache"), "seed": number}
        data = DialogSumDataModule(str(tiny_base()), path=str(sample), **options)
        trainer.validate(Answers(), data, verbose=False)
        [file] = (tmp_path / str(number)).rglob("samples/*.jsonl")
        tables.append([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])
    indices = [row["index"] for row in tables[0]]
    assert len(indices) == 5
    assert indices == sorted(indices)
    assert tables[0] == tables[1]
    assert all(row["prediction"] == row["id"] for row in tables[0])
