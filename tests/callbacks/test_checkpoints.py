"""When checkpoints are written, how many stay, how big they are, and that each can be exported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

from src.callbacks import Checkpoints
from src.callbacks.storage import read_checkpoint
from src.cli import main
from src.errors import ParleyError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fit(tiny_base, sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(recipe: str, *more: str) -> Path:
        words = [
            *("fit", "-c", str(ROOT / "configs" / recipe), "--data.init_args.path", str(sample)),
            *("--model.init_args.model_name_or_path", str(tiny_base("t5")), "--data.init_args.max_source_length", "48"),
            *("--data.init_args.train_split", "train[:24]", "--data.init_args.batch_size", "4"),
            *(
                "--data.init_args.validation_split",
                "validation[:2]",
                "--model.init_args.generation.max_new_tokens",
                "2",
            ),
            *("--model.init_args.optimizer.init_args.lr", "0.01", "--trainer.accelerator", "cpu"),
            *("--trainer.enable_progress_bar", "false", "--trainer.num_sanity_val_steps", "0"),
            *("--trainer.max_epochs", "1", "--trainer.callbacks+=Checkpoints"),
        ]
        assert main([*words, *more]) == 0
        return tmp_path / "runs" / "version_0" / "checkpoints"

    return run


def names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.glob("*.ckpt"))


def test_the_newest_and_the_best_stay_and_any_can_be_exported(fit, tiny_base, tmp_path):
    directory = fit(
        "dialogsum_lora.yaml",
        *("--trainer.callbacks.every_n_steps", "1", "--trainer.callbacks.keep_last", "3"),
        *("--trainer.callbacks.monitor", "val/loss", "--trainer.callbacks.mode", "min"),
        *("--trainer.val_check_interval", "2"),
    )
    assert names(directory) == ["best.ckpt", *(f"step=000000{step}.ckpt" for step in (4, 5, 6))]
    with (directory.parent / "metrics.csv").open() as stream:
        header, *rows = (line.rstrip("\n").split(",") for line in stream)
    column = header.index("val/loss")
    losses = [float(row[column]) for row in rows if row[column]]
    best = read_checkpoint(directory / "best.ckpt")
    assert best["callbacks"][next(key for key in best["callbacks"] if "Checkpoints" in key)]["best_score"] == min(
        losses
    )
    assert best["global_step"] == 2 * (losses.index(min(losses)) + 1)
    base = AutoModelForSeq2SeqLM.from_pretrained(tiny_base("t5"))
    for name in names(directory):
        out = tmp_path / name
        assert main(["export", "--checkpoint", str(directory / name), "--output", str(out)]) == 0
        adapter = PeftModel.from_pretrained(base, out).get_submodule("base_model.model.encoder.block.0").state_dict()
        saved = read_checkpoint(directory / name)["state_dict"]
        key = "layer.0.SelfAttention.q.lora_A.{}weight"
        (stored,) = (value for name, value in saved.items() if re.search(r"encoder\.block\.0\..*\.q\.lora_A", name))
        assert torch.equal(adapter[key.format("default.")], stored)
        base = AutoModelForSeq2SeqLM.from_pretrained(tiny_base("t5"))


def test_an_adapters_checkpoint_holds_no_base(fit):
    directory = fit("dialogsum_lora.yaml", "--model.init_args.lora.r", "1", "--trainer.callbacks.every_n_steps", "6")
    checkpoint = read_checkpoint(directory / "step=0000006.ckpt")
    assert all("lora_" in name for name in checkpoint["state_dict"])
    numbers = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())
    moments = sum(
        value.numel()
        for state in checkpoint["optimizer_states"][0]["state"].values()
        for value in state.values()
        if value.ndim
    )
    assert moments == 2 * numbers  # AdamW's two, of the adapter alone
    assert numbers < 0.05 * 33_632


def test_by_the_clock(fit, monkeypatch):
    """A step takes a minute; a checkpoint is due every two and a half."""
    now = {"time": 0.0}
    monkeypatch.setattr("src.callbacks.checkpoints.time.monotonic", lambda: now["time"])
    written = []
    save = Checkpoints.save

    def on_train_batch_start(self, *args):
        now["time"] += 60

    monkeypatch.setattr(Checkpoints, "on_train_batch_start", on_train_batch_start)
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, trainer: (written.append(trainer.global_step), save(self, trainer))[1]
    )
    fit("dialogsum_seq2seq.yaml", "--trainer.callbacks.every_n_minutes", "2.5")
    assert written == [3, 6, 6]  # at the last step, and after the epoch's validation


@pytest.mark.parametrize("settings", [{"keep_last": 0}, {"every_n_steps": 0}, {"every_n_minutes": -1}])
def test_numbers_must_be_positive(settings):
    with pytest.raises(ParleyError, match="must be positive"):
        Checkpoints(**settings)
