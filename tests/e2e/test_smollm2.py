"""A model that somebody else pretrained: SmolLM2-135M-Instruct, from the wheel that `make smollm2` fetches."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from src.cli import main

ROOT = Path(__file__).resolve().parents[2]
SMOLLM2 = Path(".assets/smollm2")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / SMOLLM2 / GGUF).is_file(), reason="no SmolLM2; `make smollm2` fetches it"),
]


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_it_answers_in_its_chat_template(capsys):
    words = ["--gguf-file", GGUF, "--prompt", "What is the capital of France?", "--max-new-tokens", "12"]
    assert main(["generate", str(SMOLLM2), *words]) == 0
    assert "Paris" in capsys.readouterr().out


def test_recipe_trains_and_exports_a_small_adapter(tmp_path, sample):
    recipe = ["-c", "configs/dialogsum_causal_lora.yaml", "-c", "configs/trainer/cpu.yaml"]
    options = {
        "model.init_args.model_name_or_path": SMOLLM2,
        "model.init_args.gguf_file": GGUF,
        "data.init_args.path": sample,
        "data.init_args.batch_size": 2,
        "data.init_args.train_split": "train[:4]",
        "trainer.max_epochs": 1,
        "trainer.limit_val_batches": 0,
        "trainer.log_every_n_steps": 1,
        "trainer.default_root_dir": tmp_path,
    }
    assert main(["fit", *recipe, *(f"--{name}={value}" for name, value in options.items())]) == 0
    with (tmp_path / "version_0" / "metrics.csv").open() as stream:
        losses = [float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"]]
    assert len(losses) == 2
    assert 1 < losses[0] < 6  # nats a token: a pretrained model's, not ln(49152) = 10.8
    (checkpoint,) = (tmp_path / "version_0" / "checkpoints").glob("step=*.ckpt")
    assert checkpoint.stat().st_size < 0.15 * 4 * 135e6  # adapter and its optimiser state, not the base

    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "adapter")]) == 0
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    assert weights.stat().st_size < 25e6
