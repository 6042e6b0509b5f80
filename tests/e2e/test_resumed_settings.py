"""Going on from a checkpoint with other settings, from an earlier one, and in low precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from src.callbacks.storage import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
STEPS_AN_EPOCH = 4


@pytest.fixture
def words(tiny_base, sample) -> list[str]:
    return [
        *("fit", "-c", str(ROOT / "configs/dialogsum_lora.yaml"), "--data.init_args.path", str(sample)),
        *("--model.init_args.model_name_or_path", str(tiny_base("t5")), "--data.init_args.max_source_length", "32"),
        *("--data.init_args.train_split", "train[:16]", "--data.init_args.batch_size", "4"),
        *("--data.init_args.validation_split", "validation[:2]", "--model.init_args.generation.max_new_tokens", "2"),
        *("--model.init_args.optimizer.init_args.lr", "0.01", "--trainer.accelerator", "cpu"),
        *("--trainer.log_every_n_steps", "1", "--trainer.num_sanity_val_steps", "0"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every_n_steps", "2"),
        *("--trainer.callbacks.monitor", "val/loss", "--trainer.callbacks.mode", "min"),
    ]


def epochs(number: int) -> tuple[str, str]:
    return "--trainer.max_epochs", str(number)


def steps_in(directory: str) -> list[int]:
    files = (Path(directory) / "version_0" / "checkpoints").glob("step=*.ckpt")
    return sorted(int(file.stem.removeprefix("step=")) for file in files)


def checkpoint(directory: str, step: int) -> Path:
    return Path(directory) / "version_0" / "checkpoints" / f"step={step:07d}.ckpt"


def rate(file: Path) -> float:
    return read_checkpoint(file)["optimizer_states"][0]["param_groups"][0]["lr"]


@pytest.mark.slow
def test_more_epochs(parley, words):
    """A finished run's linear decay ended at 0; the longer one's does not."""
    assert parley(*words, *epochs(1)) == 0
    assert rate(checkpoint("runs", 4)) == 0
    weights = read_checkpoint(checkpoint("runs", 4))["state_dict"]
    assert parley(*words, *epochs(3), "--ckpt_path", "last") == 0
    assert parley(*words, *epochs(3), "--trainer.default_root_dir", "whole") == 0
    assert steps_in("runs") == steps_in("whole") == [10, 12]
    assert rate(checkpoint("runs", 10)) == rate(checkpoint("whole", 10)) > 0
    after = read_checkpoint(checkpoint("runs", 12))["state_dict"]
    assert any(not torch.equal(weights[name], after[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_another_rate_and_another_schedule_from_an_earlier_file(parley, words, precision):
    """What the abandoned line wrote stays; `last` follows the new one; rates are the new configuration's."""
    words = [*words, "--trainer.precision", precision, *epochs(4)]
    assert parley(*words, "--trainer.callbacks.keep_last", "5") == 0
    assert steps_in("runs") == [8, 10, 12, 14, 16]
    for unwanted in (10, 12):
        checkpoint("runs", unwanted).unlink()
    abandoned = checkpoint("runs", 16).read_bytes()
    change = ("--model.init_args.optimizer.init_args.lr", "0.002", "--model.init_args.lr_scheduler.decay", "cosine")
    assert parley(*words, *change, *epochs(3), "--ckpt_path", str(checkpoint("runs", 8))) == 0
    assert steps_in("runs") == [10, 12, 14, 16]
    assert checkpoint("runs", 16).read_bytes() == abandoned
    assert parley(*words, *change, *epochs(3), "--trainer.default_root_dir", "whole") == 0
    assert rate(checkpoint("runs", 10)) == rate(checkpoint("whole", 10)) > 0
    assert parley(*words, *change, *epochs(4), "--ckpt_path", "last") == 0  # from 12, not from the other line's 16
    assert steps_in("runs") == [14, 16]
    assert checkpoint("runs", 16).read_bytes() != abandoned
    saved = read_checkpoint(checkpoint("runs", 16))["callbacks"]
    assert saved["ExactResume"]["config"]["trainer"]["max_epochs"] == 4
    (own,) = (state for key, state in saved.items() if "Checkpoints" in key)
    assert own["written"] == [checkpoint("runs", step).name for step in (14, 16)]


@pytest.mark.slow
def test_back_to_the_best(parley, words):
    assert parley(*words, *epochs(3)) == 0
    best = Path("runs/version_0/checkpoints/best.ckpt")
    read_checkpoint(best)
    checkpoint("runs", 10).rename(best)  # wherever it was: the line ended at 12
    change = ("--model.init_args.optimizer.init_args.lr", "0.001")
    assert parley(*words, *change, *epochs(4), "--ckpt_path", "best") == 0
    assert steps_in("runs") == [14, 16]
    assert parley(*words, *change, *epochs(5), "--ckpt_path", "last") == 0
    assert steps_in("runs") == [18, 20]


@pytest.mark.slow
def test_a_second_shorter_run_in_the_same_directory(parley, words):
    """It drops its own, and nothing of the first."""
    words += ["--trainer.callbacks.dirpath", "together"]
    assert parley(*words, *epochs(3)) == 0
    assert parley(*words, *epochs(2), "--trainer.callbacks.keep_last", "1") == 0
    assert sorted(file.name for file in Path("together").glob("step=*")) == [
        f"step={step:07d}.ckpt" for step in (8, 10, 12)
    ]


def test_float16_that_overflows_stops_and_is_never_kept(parley, words, capsys):
    words = [*words, "--trainer.precision", "16-true", *epochs(3), "--trainer.callbacks.every_n_steps", "100"]
    assert parley(*words, "--model.init_args.optimizer.init_args.lr", "1e4") == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert "not finite" in line
    assert "bf16-mixed" in line
    assert not list(Path("runs").rglob("*.ckpt"))
