"""W&B, read back from the offline files that it wrote."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2 as protocol

from src.callbacks import WandbRun

ROOT = Path(__file__).resolve().parents[2]
BLOCK, HEADER = 32768, 7


def records(file: Path) -> Iterator[protocol.Record]:
    """W&B's own log: a header, then records in LevelDB's framing."""
    data = file.read_bytes()
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last piece
            yield protocol.Record.FromString(parts)
            parts = b""


def history(directory: Path) -> list[dict[str, float]]:
    """The rows of all files of a directory, oldest first."""
    rows = []
    for file in sorted(directory.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime):
        for record in records(file):
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                rows.append({key: json.loads(value) for key, value in items.items()})
    return rows


def run_ids(directory: Path) -> set[str]:
    return {file.stem.removeprefix("run-") for file in directory.glob("wandb/offline-run-*/run-*.wandb")}


DRIVER = """
import sys
from src.cli import main
from src.modules import Seq2SeqModule

cut, whole = int(sys.argv[1]), Seq2SeqModule.training_step

def training_step(self, batch, batch_idx):
    if self.trainer.global_step == cut:
        sys.exit(9)  # the power goes
    return whole(self, batch, batch_idx)

Seq2SeqModule.training_step = training_step
sys.exit(main(sys.argv[2:]))
"""


def run(directory: Path, base: Path, sample: Path, *more: str, cut: int = -1) -> int:
    """Run `parley fit` with W&B in a process of its own, without a key, cut off at a step."""
    arguments = [
        *("fit", "-c", str(ROOT / "configs/dialogsum_seq2seq.yaml"), "-c", str(ROOT / "configs/logger/wandb.yaml")),
        *("--model.init_args.model_name_or_path", str(base), "--data.init_args.path", str(sample)),
        *("--data.init_args.train_split", "train[:48]", "--data.init_args.validation_split", "validation[:2]"),
        *("--data.init_args.max_source_length", "48", "--model.init_args.generation.max_new_tokens", "3"),
        *("--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every_n_steps", "2", *more),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(directory), "NETRC": str(directory / "none")}
    command = [sys.executable, "-c", DRIVER, str(cut), *arguments]
    return subprocess.run(
        command, cwd=directory, env=environment, timeout=300, capture_output=True, check=False
    ).returncode


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory, tiny_base, sample) -> Path:
    """The directory of a run that was cut off in its sixth step, one past its newest checkpoint."""
    directory = tmp_path_factory.mktemp("wandb")
    assert run(directory, tiny_base("t5"), sample, cut=5) == 9
    assert steps_with_loss(directory / "runs") == [0, 1, 2, 3, 4]
    return directory


def steps_with_loss(directory: Path) -> list[float]:
    return [row["trainer/global_step"] for row in history(directory) if "train/loss" in row]


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run_with_every_step_once(cut_run, tmp_path, tiny_base, sample):
    shutil.copytree(cut_run / "runs", tmp_path / "runs", symlinks=True)
    assert run(tmp_path, tiny_base("t5"), sample, "--ckpt_path", "last") == 0
    assert len(run_ids(tmp_path / "runs")) == 1
    assert steps_with_loss(tmp_path / "runs") == [0, 1, 2, 3, 4, 5]
    keys = {key for row in history(tmp_path / "runs") for key in row}
    assert "val/rouge1" in keys
    assert any(key.startswith("samples") for key in keys)


@pytest.mark.slow
def test_a_fresh_run_is_another_run(cut_run, tmp_path, tiny_base, sample):
    shutil.copytree(cut_run / "runs", tmp_path / "runs", symlinks=True)
    assert run(tmp_path, tiny_base("t5"), sample, "--ckpt_path", "last", "--fresh_run", "true") == 0
    assert len(run_ids(tmp_path / "runs")) == 2
    assert steps_with_loss(tmp_path / "runs")[5:] == [3, 4, 5]


@pytest.mark.slow
def test_what_the_run_is_gets_recorded(cut_run):
    config = {}
    for record in records(next(cut_run.glob("runs/wandb/offline-run-*/run-*.wandb"))):
        for source in (record.run.config, record.config):
            for item in source.update:
                config["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    assert config["trainable_parameters"] == config["parameters"] > 0
    for expected in ("Seq2SeqModule", "commit", "transformers", "torch"):
        assert expected in json.dumps(config)


def test_offline_is_said_once(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    said: list[str] = []
    monkeypatch.setattr("src.callbacks.wandb_logger.log.info", lambda message, *values: said.append(message % values))
    logger = WandbRun(save_dir=str(tmp_path))
    for step in range(3):
        logger.log_metrics({"x": 1.0}, step)
    logger.experiment.finish()  # without it W&B goes on reading what later tests write to stderr
    wandb.teardown()
    assert len(said) == 1
    assert "no API key" in said[0]
