"""Two processes do what one does."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from src.cli import main

ROOT = Path(__file__).resolve().parents[2]


def run(directory: Path, base: Path, sample: Path, command: str, *words: str) -> None:
    """One process is this one; two are of their own."""
    words = (
        command, "-c", str(ROOT / "configs" / "dialogsum_seq2seq.yaml"),
        *("--model.init_args.model_name_or_path", str(base)), *("--data.init_args.path", str(sample)),
        *("--data.init_args.test_split", "test[:13]"), *("--data.init_args.validation_split", "validation[:7]"),
        *("--model.init_args.dropout", "0.0"), *("--model.init_args.generation.max_new_tokens", "12"),
        *("--model.init_args.optimizer.init_args.lr", "0.01"), *("--trainer.accelerator", "cpu"),
        *("--trainer.limit_train_batches", "5"), *("--trainer.log_every_n_steps", "1"),
        *("--trainer.default_root_dir", str(directory)), *("--trainer.enable_progress_bar", "false"), *words,
    )  # fmt: skip
    if "ddp" in words:
        subprocess.run([sys.executable, "-m", "src", *words], cwd=ROOT, check=True, capture_output=True, timeout=300)
    else:
        assert main(words) == 0


def read(directory: Path, file: str) -> list[dict[str, str]]:
    with (directory / "version_0" / file).open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_same_losses_metrics_and_predictions(tmp_path, tiny_base, sample):
    base = tiny_base("t5")
    one, two = tmp_path / "one", tmp_path / "two"
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    run(one, base, sample, "fit", "--trainer.devices", "1", "--data.init_args.batch_size", "6")
    run(two, base, sample, "fit", *ddp, "--data.init_args.batch_size", "3")
    rows = list(zip(read(one, "metrics.csv"), read(two, "metrics.csv"), strict=True))
    compared = 0
    for first, second in rows:
        for key in ("train/loss", "val/loss", "val/rouge1", "val/rougeL_best"):
            if first.get(key):
                assert float(first[key]) == pytest.approx(float(second[key]), abs=2e-5)
                compared += 1
    assert compared == 5 + 3
    checkpoints = [next((directory / "version_0" / "checkpoints").glob("*.ckpt")) for directory in (one, two)]
    run(tmp_path / "test-one", base, sample, "test", "--trainer.devices", "1", "--ckpt_path", str(checkpoints[0]))
    run(tmp_path / "test-two", base, sample, "test", *ddp, "--ckpt_path", str(checkpoints[0]))
    first, second = (read(tmp_path / name, "predictions.csv") for name in ("test-one", "test-two"))
    assert len(first) == 13
    assert first == second
