"""What `--ckpt_path` means, and what a checkpoint is refused for."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from src.callbacks.storage import AtomicCheckpointIO, read_checkpoint
from src.cli import main
from src.commands.resume import choose_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def words(tiny_base, sample, tmp_path_factory) -> list[str]:
    return [
        *("fit", "-c", str(ROOT / "configs" / "dialogsum_lora.yaml"), "--data.init_args.path", str(sample)),
        *("--model.init_args.model_name_or_path", str(tiny_base("t5")), "--data.init_args.max_source_length", "48"),
        *("--data.init_args.train_split", "train[:12]", "--data.init_args.batch_size", "4"),
        *("--data.init_args.cache_dir", str(tmp_path_factory.mktemp("cache")), "--trainer.limit_val_batches", "0"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1"),
        *("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every_n_steps", "1"),
        *("--trainer.callbacks.keep_last", "3"),
    ]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory) -> Path:
    """A run of three steps with a checkpoint of each."""
    directory = tmp_path_factory.mktemp("finished")
    assert main([*words, "--trainer.default_root_dir", str(directory / "runs")]) == 0
    return directory / "runs"


@pytest.fixture
def runs(finished, tmp_path, monkeypatch) -> Path:
    """A copy of it, where it is looked for."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs")
    return Path("runs")


def checkpoint(runs: Path, step: int) -> Path:
    return runs / "version_0" / "checkpoints" / f"step={step:07d}.ckpt"


def refused(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("parley fit: ")
    return line


@pytest.mark.slow
def test_a_truncated_one_is_passed_over(runs, words, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("src"), "propagate", True)
    newest = checkpoint(runs, 3)
    data = newest.read_bytes()
    newest.write_bytes(data[: len(data) // 2])
    assert main([*words, "--ckpt_path", "last"]) == 0
    assert f"Passed over {newest}: it is damaged, or of another program." in caplog.text
    assert f"Going on from {checkpoint(runs, 2)}." in caplog.text
    assert torch.load(newest, weights_only=True)["global_step"] == 3  # written anew


def test_a_damaged_one_that_is_asked_for_is_refused(runs, words, capsys):
    newest = checkpoint(runs, 3)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert "it is damaged: it does not hold what was written; give a whole" in refused(
        capsys, *words, "--ckpt_path", str(newest)
    )


@pytest.mark.slow
def test_none_there(tmp_path, monkeypatch, words, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("src"), "propagate", True)
    assert "x.ckpt cannot be read as a checkpoint: there is no such file" in refused(
        capsys, *words, "--ckpt_path", "x.ckpt"
    )
    assert "no best.ckpt of this recipe" in refused(capsys, *words, "--ckpt_path", "best")
    assert main([*words, "--ckpt_path", "last", "--trainer.fast_dev_run", "1"]) == 0
    assert "starting fresh" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [("--model.init_args.lora", "null"), ("--model.init_args.model_name_or_path", "elsewhere")],
    ids=["whole model", "another base"],
)
def test_last_takes_only_this_recipes(runs, words, caplog, monkeypatch, tiny_base, other):
    monkeypatch.setattr(logging.getLogger("src"), "propagate", True)
    shutil.copytree(tiny_base("t5"), "elsewhere")
    assert main([*words, "--ckpt_path", "last", "--trainer.fast_dev_run", "1", *other]) == 0
    assert "it is of another recipe" in caplog.text
    assert "starting fresh" in caplog.text


@pytest.mark.parametrize("to_train", [False, True])
def test_another_datamodule_is_another_recipe_for_training_alone(runs, to_train):
    settings = read_checkpoint(checkpoint(runs, 3))["callbacks"]["ExactResume"]["config"]
    settings = settings | {
        "data": settings["data"] | {"class_path": "src.datamodules.preferences.PreferenceDataModule"}
    }
    found = choose_checkpoint("last", runs, settings, may_start_fresh=to_train)
    assert found == (None if to_train else checkpoint(runs, 3))


@pytest.mark.slow
def test_last_looks_where_checkpoints_are_told_to_go(runs, words, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("src"), "propagate", True)
    shutil.move(runs / "version_0" / "checkpoints", "kept")
    there = ["--trainer.callbacks.dirpath", "kept", "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    assert main([*words, *there]) == 0
    assert "kept/step=0000003.ckpt" in caplog.text
    assert [file.name for file in sorted(Path("kept").glob("*.ckpt"))][-1] == "step=0000006.ckpt"
    assert "starting fresh" not in caplog.text


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("--model.init_args.lora.r", "4"), "does not fit"),
        (("--model.init_args.lora.target_modules", "[q]"), "holds more"),
        (("--model.init_args.lora.target_modules", "[q, k]"), "checkpoint lacks it"),
        (("--model.init_args.lora", "null"), "holds an adapter and this run trains a whole model"),
    ],
    ids=["rank", "fewer targets", "other targets", "no adapter"],
)
def test_other_shapes_are_refused(runs, words, capsys, change, complaint):
    line = refused(capsys, *words, "--ckpt_path", str(checkpoint(runs, 2)), *change)
    assert complaint in line


@pytest.mark.slow
def test_another_base_is_refused(runs, words, capsys, tiny_base):
    asked = ("--ckpt_path", str(checkpoint(runs, 2)), "--model.init_args.model_name_or_path")
    assert "has other weights" in refused(capsys, *words, *asked, str(tiny_base("t5", seed=1)))
    assert "decoder-only" in refused(capsys, *words, *asked, str(tiny_base("gpt2")))
    assert "gone" in refused(capsys, *words, *asked, "gone")


@pytest.mark.slow
def test_other_settings_are_named(runs, words, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("src"), "propagate", True)
    change = ("--model.init_args.optimizer.init_args.lr", "0.5", "--data.init_args.num_workers", "1")
    assert main([*words, "--ckpt_path", str(checkpoint(runs, 2)), *change]) == 0
    changed = [line.getMessage() for line in caplog.records if "Changed since" in line.getMessage()]
    assert set(changed) == {"Changed since the checkpoint: model.init_args.optimizer.init_args.lr was 0.001, now 0.5."}


def test_a_newer_format_says_what_it_needs(runs, words, capsys):
    path = checkpoint(runs, 2)
    saved = read_checkpoint(path)
    saved["parley"] |= {"format": 99, "version": "9.9"}
    AtomicCheckpointIO().save_checkpoint(saved, path)
    assert "needs Parley 9.9 or newer" in refused(capsys, *words, "--ckpt_path", str(path))


def test_a_strangers_checkpoint(runs, words, capsys):
    torch.save({"state_dict": {}}, "stranger.ckpt")
    assert "was not written by Parley" in refused(capsys, *words, "--ckpt_path", "stranger.ckpt")


@pytest.mark.slow
def test_two_runs_in_one_directory(runs, words, capsys):
    from src.callbacks.run_directory import DirectoryLock

    child = os.fork()
    if not child:
        held = DirectoryLock(runs / "version_0" / "checkpoints")
        Path("locked").write_text("")
        os.kill(os.getpid(), signal.SIGSTOP)
        held.release()
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    try:
        assert Path("locked").exists()
        settings = (runs / "version_0" / "config.yaml").read_bytes()
        line = refused(capsys, *words, "--ckpt_path", "last", "--trainer.max_epochs", "7")
        assert (runs / "version_0" / "config.yaml").read_bytes() == settings  # the other run's
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert f"another run (process {child} on" in line
    assert main([*words, "--ckpt_path", "last"]) == 0


@pytest.mark.slow
def test_a_run_cleans_up_after_one_that_was_killed_in_writing(runs, words):
    half = runs / "version_0" / "checkpoints" / ".step=0000004.ckpt.1.tmp"
    half.write_bytes(b"PK")
    assert main([*words, "--ckpt_path", str(checkpoint(runs, 2))]) == 0
    assert not half.exists()


def test_no_room_for_a_run(tmp_path, monkeypatch, words, capsys):
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("")
    line = refused(capsys, *words, "--trainer.default_root_dir", "taken")
    assert "taken" in line
