"""What the smaller callbacks leave behind: settings, answers, rows, and a checkpoint where a signal came."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import Logger

from src.callbacks import Checkpoints, PredictionWriter, RunLogger, RunRecord, StopOnSignal
from src.datamodules import DialogSumDataModule
from src.errors import StoppedBySignalError

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


class Recorder(Logger):
    """Keeps the hyperparameters that it is given."""

    name, version = "recorder", "0"

    def __init__(self) -> None:
        super().__init__()
        self.params: list[dict[str, Any]] = []

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.params.append(params)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...


def test_a_run_says_what_it_is(tmp_path: Path) -> None:
    logger = Recorder()
    settings = {"seed_everything": 7}
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_steps=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        logger=logger,
        callbacks=[RunRecord(settings)],
        **QUIET,
    )
    trainer.fit(BoringModel())
    [record] = [params for params in logger.params if "git" in params]
    assert record["config"] == settings
    assert record["environment"]["torch"] == metadata.version("torch")
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert record["git"].get("commit", "") == found.stdout.strip()


class Answers(LightningModule):
    """Answers every prompt with its name in capitals."""

    def test_step(self, batch: Any) -> dict[str, Any]:
        return {"predictions": [name.upper() for name in batch["id"]]}


def test_every_answer_of_a_test_is_written_once_beside_its_references(
    tiny_base: Any, sample: Path, tmp_path: Path
) -> None:
    trainer = Trainer(default_root_dir=tmp_path, logger=False, callbacks=[PredictionWriter("answers.csv")], **QUIET)
    options: dict[str, Any] = {"batch_size": 7, "cache_dir": str(tmp_path / "cache"), "test_split": "test[:25]"}
    trainer.test(Answers(), DialogSumDataModule(str(tiny_base()), path=str(sample), **options), verbose=False)
    [file] = tmp_path.rglob("answers.csv")
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    lines = [json.loads(line) for line in (sample / "test.jsonl").read_text(encoding="utf-8").splitlines()[:25]]
    assert [row["prediction"] for row in rows] == [row["id"].upper() for row in rows]
    assert len({row["id"] for row in rows}) == 25
    expected = [[line[f"summary{i}"] for i in (1, 2, 3)] for line in lines]
    assert [[row[f"reference{i}"] for i in (1, 2, 3)] for row in rows] == expected


def test_rows_that_are_taken_back_are_gone_and_the_rest_stays(tmp_path: Path) -> None:
    logger = RunLogger(str(tmp_path), name="", version="run")
    for step in range(5):
        logger.log_metrics({"train/loss": float(step)}, step=step)
    logger.save()
    again = RunLogger(str(tmp_path), name="", version="run")
    assert again.resume_state() == {"rows": 5}
    again.truncate(3)
    again.log_metrics({"train/loss": 30.0, "val/loss": 1.0}, step=3)
    again.save()
    with (tmp_path / "run" / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["train/loss"]) for row in rows] == [0.0, 1.0, 2.0, 30.0]
    assert [row["val/loss"] for row in rows] == ["", "", "", "1.0"]


class SignalAt(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_training_after_the_step_with_a_checkpoint_of_it(
    tmp_path: Path, number: int, status: int
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        callbacks=[StopOnSignal(), Checkpoints(dirpath=str(tmp_path / "kept")), SignalAt(4, number)],
        **QUIET,
    )
    with pytest.raises(StoppedBySignalError, match="step 5") as stopped:
        trainer.fit(BoringModel())
    assert stopped.value.exit_status == status
    assert [file.name for file in (tmp_path / "kept").glob("*.ckpt")] == ["step=0000005.ckpt"]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before
