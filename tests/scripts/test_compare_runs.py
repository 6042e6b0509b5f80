"""The comparison of runs notices what differs, wherever it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scripts import crash_test
from scripts.compare_runs import compare_runs, compare_runs_closely
from scripts.compare_values import differences
from scripts.compare_wandb import wandb_faults
from src.callbacks import AtomicCheckpointIO, RunLogger, WandbRun
from src.contracts import CHECKPOINT_FORMAT


def write_checkpoint(file: Path, weight: float) -> None:
    state = {"config": {}, "position": "within epoch", "pending": {}, "metrics": {"time/fit": weight}}
    checkpoint = {
        "parley": {"format": CHECKPOINT_FORMAT, "version": "0", "base": {"name": "none"}, "config": {}},
        "state_dict": {"weight": torch.tensor([weight])},
        "callbacks": {"ExactResume": {**state, "loggers": [{"rows": 1}]}},
        "loops": {"fit_loop": {"epoch_loop.val_loop.batch_progress": {"current": 0, "is_last_batch": False}}},
    }
    AtomicCheckpointIO().save_checkpoint(checkpoint, file)


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """Two runs that are equal but for the clock and for where they are."""
    for name, clock in (("one", 1.0), ("other", 2.0)):
        run = tmp_path / name / "version_0"
        for step, file in enumerate(("step=0000002.ckpt", "step=0000004.ckpt", "best.ckpt")):
            write_checkpoint(run / "checkpoints" / file, step / 3)
        (run / "metrics.csv").write_text(f"step,train/loss,val/nan,time/fit\n0,0.5,,{clock}\n1,0.25,nan,{clock}\n")
        (run / "config.yaml").write_text(f"seed: 1\nckpt_path: {name}\ndirectory: {tmp_path / name}\n")
        (run / "rollouts.jsonl").write_text('{"score": 0.5}\n')
    return tmp_path / "one", tmp_path / "other"


DAMAGE: dict[str, Callable[[Path], object]] = {
    "step=0000002.ckpt": lambda run: write_checkpoint(run / "checkpoints/step=0000002.ckpt", 0.1),
    "best.ckpt": lambda run: write_checkpoint(run / "checkpoints/best.ckpt", 0.1),
    "checkpoints: ": lambda run: (run / "checkpoints/best.ckpt").unlink(),
    "metrics.csv: ": lambda run: (run / "metrics.csv").write_text("step,train/loss\n0,0.5\n1,0.26\n"),
    "config.yaml": lambda run: (run / "config.yaml").write_text("seed: 2\n"),
    "rollouts.jsonl": lambda run: (run / "rollouts.jsonl").write_text('{"score": 0.6}\n'),
    "only one run has ['checkpoints/.half.tmp']": lambda run: (run / "checkpoints/.half.tmp").touch(),
    "stray in other: ['version']": lambda run: (run.parent / "version").mkdir(),
}


def test_equal_runs_are_equal(pair):
    assert compare_runs(*pair) == []
    shutil.copytree(pair[1] / "version_0", pair[1] / "version_1")
    shutil.rmtree(pair[1] / "version_0" / "checkpoints")  # killed before its first
    assert compare_runs(*pair) == []


@pytest.mark.parametrize("place", DAMAGE)
def test_a_difference_is_named(pair, place):
    DAMAGE[place](pair[1] / "version_0")
    assert any(line.startswith(place) for line in compare_runs(*pair))


def test_closely_is_to_float_tolerance(pair):
    for weight, is_equal in ((2 / 3 + 1e-5, False), (1 / 3 + 1e-5, True), (1 / 3 + 1e-2, False)):
        write_checkpoint(pair[1] / "version_0/checkpoints/step=0000004.ckpt", weight)
        assert (compare_runs_closely(*pair) == []) == is_equal
        assert compare_runs(*pair)
    assert not any(differences({"a": [float("nan")]}, {"a": [float("nan")]}))
    assert list(differences([torch.ones(2)], [torch.ones(2, dtype=torch.int)])) == ["checkpoint[0]"]


@pytest.mark.slow
def test_a_row_that_wandb_lacks_is_noticed(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()  # a run that is still open would be taken for this one
    ours, theirs = RunLogger(str(tmp_path), name=""), WandbRun(save_dir=str(tmp_path), id="abcd1234", offline=True)
    for step in range(5):
        row = {"train/loss": step / 3 if step < 4 else float("nan"), "time/fit": 1.0}
        for logger in (ours, theirs):
            logger.log_metrics(row, step)
    ours.save()
    theirs.experiment.finish()
    wandb.teardown()
    assert list(wandb_faults(Path(ours.log_dir), "abcd1234")) == []
    log = Path(ours.log_dir) / "metrics.csv"
    lines = log.read_text().splitlines(keepends=True)
    for changed in ([*lines, lines[-1].replace("4", "5")], lines[:-1], [*lines[:-1], lines[-1].replace("nan", "0.1")]):
        assert changed != lines
        log.write_text("".join(changed))
        assert list(wandb_faults(Path(ours.log_dir), "abcd1234"))


def test_too_few_kills_are_a_failure(tmp_path, monkeypatch):
    for name in ("_init", "_start", "_finish"):
        monkeypatch.setattr(crash_test.CrashTest, name, lambda *_: None)
    monkeypatch.setattr(crash_test, "compare_runs", lambda *_: [])
    calls = iter([True, False])

    def kill_once(self, root, chance, result):
        result.kills += (killed := next(calls))
        return killed

    monkeypatch.setattr(crash_test.CrashTest, "_kill_once", kill_once)
    given = crash_test.parse(["--task", "seq2seq", "--kills", "2"])
    assert crash_test.CrashTest(given, tmp_path).run().differences == [
        "the run was at its end after 1 of 2 kills: another --seed"
    ]
