"""What runs are called, what they were, and which of them a directory holds."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from src.errors import ParleyError
from src.reporting.finding import find_runs
from src.reporting.runs import Run
from src.reporting.telling import commands, sentence, short_names

SETTINGS = {
    "model.class_path": "src.modules.Seq2SeqModule",
    "model.init_args.model_name_or_path": "models/base",
    "data.class_path": "src.datamodules.DialogSumDataModule",
    "data.init_args.path": "sample",
    "data.init_args.test_split": "test[:9]",
}


def run(name: str, metric: str, **more: str) -> Run:
    return Run(name, SETTINGS | more, {metric: [(0, 1.0), (575, 1.0)]}, (), (), ())


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["runs/version_0"], ["runs/version_0"]),
        (["runs/version_0", "runs/version_1"], ["version_0", "version_1"]),
        (["runs/demo/fit/version_0", "runs/demo/ppo-test/version_0"], ["fit", "ppo-test"]),
        (["r/fit/0", "r/fit/1", "r/ppo/0"], ["fit/0", "fit/1", "ppo/0"]),
        (["runs/a", "runs/a/b"], ["a", "a/b"]),
        (["a/x/x", "a/x"], ["x/x", "x"]),
        (["/one/same", "/two/same"], ["one", "two"]),
    ],
)
def test_short_names_tell_runs_apart(names: list[str], short: list[str]):
    assert short_names(names) == short


@pytest.mark.parametrize(
    ("checkpoint", "steps"), [("step=0000580.ckpt", 580), ("step=0000400.ckpt", 576), ("best.ckpt", 576)]
)
def test_a_run_is_as_long_as_its_checkpoint_says(checkpoint: str, steps: int):
    """Metrics of every tenth step are logged."""
    made = replace(run("a", "train/loss"), checkpoint=f"a/checkpoints/{checkpoint}")
    assert sentence(made, {}).endswith(f": {steps} steps.")


def test_what_a_run_was(tmp_path: Path):
    checkpoint = str(tmp_path / "fit" / "version_0" / "checkpoints" / "step=0000576.ckpt")
    known = {str(tmp_path / "fit" / "version_0"): "fit"}
    data = "sample (DialogSumDataModule, "
    assert sentence(run("a", "train/loss"), known) == (
        f"Fit of Seq2SeqModule from models/base, on {data}train): 576 steps."
    )
    assert sentence(run("a", "test/loss", ckpt_path=checkpoint), known) == (
        f"Test of the checkpoint step=0000576.ckpt of fit by Seq2SeqModule on {data}test[:9])."
    )
    assert f"Test of the checkpoint {checkpoint} by" in sentence(run("a", "test/loss", ckpt_path=checkpoint), {})
    assert sentence(run("a", "test/loss"), known).startswith("Test of models/base as it is, no checkpoint, by")
    assert sentence(run("a", "val/loss"), known).startswith("Validation of models/base")
    adapter = {"model.init_args.lora.class_path": "peft.LoraConfig", "ckpt_path": checkpoint}
    assert sentence(run("a", "train/loss", **adapter), known).startswith(
        "Fit of Seq2SeqModule with an adapter (LoraConfig) from models/base, gone on from the checkpoint "
    )
    assert "there is no config.yaml" in sentence(Run("a", {}, {}, (), (), ()), known)


def test_every_run_s_model_goes_to_a_directory_of_its_own():
    trained = [
        Run(f"runs/{name}/version_0", SETTINGS, {}, (), (), (), (1, 1), checkpoint=f"{name}.ckpt") for name in "ab"
    ]
    names = short_names([run.name for run in trained])
    exports = [dict(commands(run, name))["export"] for run, name in zip(trained, names, strict=True)]
    assert exports == [f"parley export --checkpoint {name}.ckpt --output models/{name}" for name in "ab"]


def test_a_directory_stands_for_the_runs_in_it_the_oldest_first(tmp_path: Path):
    for age, name in enumerate(("c", "a", "b")):
        directory = tmp_path / "demo" / name / "version_0"
        directory.mkdir(parents=True)
        for file in ("metrics.csv", "config.yaml"):
            (directory / file).touch()
        os.utime(directory / "config.yaml", (1000 + age, 1000 + age))
    (tmp_path / "demo" / "model").mkdir()
    assert [run.parent.name for run in find_runs([tmp_path / "demo"])] == ["c", "a", "b"]
    one = tmp_path / "demo" / "a" / "version_0"
    assert find_runs([one]) == [one]
    for given in ([one, one], [tmp_path / "demo", one], [one, one.parent], [one, one / ".." / "version_0"]):
        with pytest.raises(ParleyError, match=r"version_0 is given twice; leave one of them out"):
            find_runs(given)
    with pytest.raises(ParleyError, match=r"model is no run and holds none.*give a run's directory"):
        find_runs([tmp_path / "demo" / "model"])
    with pytest.raises(ParleyError, match=r"there is no run .*nowhere"):
        find_runs([tmp_path / "nowhere"])
