"""When checkpoints are written, how many stay, how big they are, and that each can be exported."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


@pytest.mark.slow
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


@pytest.mark.slow
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


def run_of(directory: Path, **more: Any) -> Any:
    """A trainer whose checkpoints hold what the callback says and nothing else."""
    trainer = SimpleNamespace(
        global_step=0,
        ckpt_path=None,
        precision="32-true",
        is_global_zero=True,
        callback_metrics={},
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        lightning_module=torch.nn.Linear(1, 1),
        fit_loop=SimpleNamespace(
            epoch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)),
            epoch_loop=SimpleNamespace(total_batch_idx=0),
        ),
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision, checkpoint_io=None),
    )
    trainer.checkpoints = Checkpoints(dirpath=str(directory), **more)
    trainer.save_checkpoint = lambda path, **_: (
        path.parent.mkdir(exist_ok=True),
        path.write_text(json.dumps(trainer.checkpoints.state_dict())),
    )
    return trainer


def train(trainer: Any, steps: Iterable[int], start: Path | None = None) -> None:
    if start is not None:
        trainer.checkpoints.load_state_dict(json.loads(start.read_text()))
        trainer.ckpt_path = str(start)
    trainer.checkpoints.on_train_start(trainer, None)
    for trainer.global_step in steps:
        trainer.checkpoints.save(trainer)
        time.sleep(0.01)  # so that files differ in age on every file system


def steps_in(directory: Path) -> list[int]:
    return sorted(int(file.stem.removeprefix("step=")) for file in directory.glob("step=*.ckpt"))


def test_a_run_drops_what_its_own_line_wrote(tmp_path):
    train(run_of(tmp_path), (2, 4, 6, 8))
    assert steps_in(tmp_path) == [6, 8]
    train(run_of(tmp_path), (7, 9, 11), tmp_path / "step=0000006.ckpt")  # back, to other steps
    assert steps_in(tmp_path) == [8, 9, 11]  # 8 is the other line's
    train(run_of(tmp_path, keep_last=1), (13,), tmp_path / "step=0000011.ckpt")
    assert steps_in(tmp_path) == [8, 13]
    train(run_of(tmp_path), (1, 2, 3))  # a run that goes on from none
    assert steps_in(tmp_path) == [2, 3, 8, 13]


def test_nothing_newer_goes_for_something_older(tmp_path):
    train(run_of(tmp_path), (2, 4, 6, 8))
    (kept := tmp_path / "step=0000008.ckpt").rename(tmp_path / "aside")
    train(run_of(tmp_path), (6,))  # another run writes the same name anew
    (tmp_path / "aside").rename(kept)
    train(run_of(tmp_path), (10,), kept)
    assert steps_in(tmp_path) == [6, 8, 10]


def test_what_a_killed_run_did_not_come_to_drop_goes(tmp_path):
    train(run_of(tmp_path, keep_last=3), (2, 4, 6))
    train(run_of(tmp_path, keep_last=1), (), tmp_path / "step=0000006.ckpt")
    assert steps_in(tmp_path) == [6]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_that_goes_on_lists_the_checkpoints_that_one_that_was_not_stopped_lists(tmp_path, asynchronous):
    trainer, afterwards = run_of(tmp_path / "run", asynchronous=asynchronous), {}
    trainer.checkpoints.on_train_start(trainer, None)
    for trainer.global_step in (2, 4, 6, 8):
        trainer.checkpoints.save(trainer)
        shutil.copytree(tmp_path / "run", tmp_path / str(trainer.global_step))  # as a kill would leave it
        afterwards[trainer.global_step] = trainer.checkpoints.state_dict()
    for step, state in afterwards.items():
        resumed = run_of(tmp_path / str(step), asynchronous=asynchronous)
        train(resumed, (), tmp_path / str(step) / f"step={step:07d}.ckpt")
        assert resumed.checkpoints.state_dict() == state


def test_a_line_ends_at_the_directory(tmp_path):
    """What another directory's run wrote has the same names."""
    train(run_of(tmp_path / "one"), (2, 4))
    train(run_of(tmp_path / "other"), (2, 4))
    train(run_of(tmp_path / "other"), (6,), tmp_path / "one" / "step=0000004.ckpt")
    assert steps_in(tmp_path / "other") == [2, 4, 6]


@pytest.mark.parametrize(("mode", "best"), [("max", 3.0), ("min", 1.0)])
def test_what_is_not_finite_is_never_best(tmp_path, mode, best):
    trainer = run_of(tmp_path, monitor="val/loss", mode=mode)
    for score in ("nan", "inf", 2.0, "nan", 1.0, 3.0, "-inf", "nan"):
        trainer.callback_metrics = {"val/loss": torch.tensor(float(score))}
        trainer.checkpoints.on_validation_end(trainer, None)
    assert trainer.checkpoints.best_score == best
    assert json.loads((tmp_path / "best.ckpt").read_text())["best_score"] == best


def test_broken_weights_are_not_written(tmp_path):
    trainer = run_of(tmp_path)
    train(trainer, (2,))
    trainer.lightning_module.weight.data.fill_(float("nan"))
    with pytest.raises(ParleyError, match=r"not finite at step 4.*bf16-mixed"):
        train(trainer, (4,))
    assert steps_in(tmp_path) == [2]


@pytest.mark.parametrize("settings", [{"keep_last": 0}, {"every_n_steps": 0}, {"every_n_minutes": -1}])
def test_numbers_must_be_positive(settings):
    with pytest.raises(ParleyError, match=r"^Checkpoints\..* is .*; it must be"):
        Checkpoints(**settings)
