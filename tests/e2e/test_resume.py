"""A run that is cut off and goes on ends as the run that nobody cut off."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scripts.compare_runs import compare_runs
from src.modules import Seq2SeqModule

ROOT = Path(__file__).resolve().parents[2]
NF4 = ["-c", str(ROOT / "configs/model/nf4.yaml")]
NF4 += ["--model.init_args.quantization.bnb_4bit_compute_dtype", "float32"]
TIMED = ("tokens_per_second", "time/")


class Cut(Exception):
    """The power goes."""


def arguments(recipe: str, base: Path, sample: Path, *more: str) -> list[str]:
    return [
        *("fit", "-c", str(ROOT / "configs" / recipe), "--model.init_args.model_name_or_path", str(base)),
        *("--data.init_args.path", str(sample), "--data.init_args.train_split", "train[:50]"),
        *("--data.init_args.validation_split", "validation[:4]", "--data.init_args.max_source_length", "64"),
        *("--model.init_args.generation.max_new_tokens", "4", "--model.init_args.optimizer.init_args.lr", "0.01"),
        *("--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every_n_steps", "2", *more),
    ]


def log_of(run: Path) -> list[dict[str, str]]:
    """The metric log without what depends on the clock."""
    with (run / "metrics.csv").open() as stream:
        rows = [
            {k: v for k, v in row.items() if v and not any(t in k for t in TIMED)} for row in csv.DictReader(stream)
        ]
    return [row for row in rows if row.keys() - {"step", "epoch"}]


def assert_same(first: Path, second: Path) -> None:
    ours, theirs = (
        torch.load(sorted((run / "checkpoints").glob("step=*.ckpt"))[-1], weights_only=True) for run in (first, second)
    )
    assert ours["global_step"] == theirs["global_step"]
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, tensor in ours["state_dict"].items():
        assert torch.equal(tensor, theirs["state_dict"][name]), name
    for mine, other in zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True):
        assert mine["param_groups"] == other["param_groups"]
        for key, values in mine["state"].items():
            for what, value in values.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other["state"][key][what])), (key, what)
    assert log_of(first) == log_of(second)


@pytest.fixture
def cut_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Cuts training off at the start of the so-manieth batch of the process."""
    whole = Seq2SeqModule.training_step

    def cut(batch_number: int) -> None:
        seen = {"batches": 0}

        def training_step(self, batch, batch_idx):
            seen["batches"] += 1
            if seen["batches"] == batch_number:
                raise Cut
            return whole(self, batch, batch_idx)

        monkeypatch.setattr(Seq2SeqModule, "training_step", training_step)

    return cut


@pytest.mark.parametrize(
    ("recipe", "more", "cuts"),
    [
        ("dialogsum_seq2seq.yaml", [], [5]),
        ("dialogsum_seq2seq.yaml", ["--trainer.val_check_interval", "3"], [4, 3]),
        pytest.param("dialogsum_seq2seq.yaml", ["--data.init_args.num_workers", "2"], [6], marks=pytest.mark.slow),
        ("dialogsum_seq2seq.yaml", ["--trainer.accumulate_grad_batches", "2"], [6]),
        ("dialogsum_lora.yaml", [], [8, 4]),
        pytest.param("dialogsum_lora.yaml", ["--trainer.precision", "bf16-true"], [5], marks=pytest.mark.slow),
        pytest.param("dialogsum_lora.yaml", ["--model.init_args.dtype", "bfloat16"], [5, 6], marks=pytest.mark.slow),
        pytest.param("dialogsum_lora.yaml", NF4, [5, 6], marks=pytest.mark.slow),
    ],
    ids=[
        "whole",
        "validation-within-epoch",
        "two-workers",
        "accumulation",
        "lora-over-the-epoch",
        "bf16",
        "bf16-base",
        "nf4-base",
    ],
)
def test_bit_for_bit(parley, tmp_path, tiny_base, sample, cut_at, monkeypatch, recipe, more, cuts):
    words = arguments(recipe, tiny_base("t5"), sample, *more)
    peaceful = ["--trainer.default_root_dir", "peaceful"]
    assert parley(*words, *peaceful) == 0
    for cut in cuts:
        with monkeypatch.context():
            cut_at(cut)
            with pytest.raises(Cut):
                parley(*words, "--ckpt_path", "last")
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
    assert parley(*words, "--ckpt_path", "last") == 0
    assert_same(tmp_path / "peaceful" / "version_0", tmp_path / "runs" / "version_0")


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", ["false", "true"], ids=["in place", "asynchronous"])
def test_every_checkpoint_is_the_same_after_a_cut_before_a_validation(
    parley, tmp_path, tiny_base, sample, monkeypatch, asynchronous
):
    """`best.ckpt` is written by the validation, of a run that goes on from the checkpoint just before it."""
    callback = {"every_n_steps": "1", "monitor": "val/loss", "mode": "min", "asynchronous": asynchronous}
    more = [word for name, value in callback.items() for word in (f"--trainer.callbacks.{name}", value)]
    words = arguments("dialogsum_seq2seq.yaml", tiny_base("t5"), sample, *more, "--trainer.num_sanity_val_steps", "0")
    assert parley(*words, "--trainer.default_root_dir", "peaceful") == 0

    def cut(self):
        if self.current_epoch == 1:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(Seq2SeqModule, "on_validation_start", cut)
        with pytest.raises(Cut):
            parley(*words)
    assert parley(*words, "--ckpt_path", "last") == 0
    assert (tmp_path / "runs/version_0/checkpoints/best.ckpt").is_file()
    assert compare_runs(tmp_path / "peaceful", tmp_path / "runs") == []
