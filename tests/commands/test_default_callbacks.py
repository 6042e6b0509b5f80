"""configs/callbacks.yaml: every run's callbacks, which a user may replace one by one, as a list, or altogether."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Callback, Trainer

import src.callbacks
from src.cli import main
from src.commands.trainer import CALLBACKS


@pytest.fixture
def fit(tiny_base: Callable[..., Path], sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fit two steps; the status, and the names of the callbacks that the trainer had."""
    monkeypatch.chdir(tmp_path)
    given = {
        "model": "Seq2SeqModule",
        "model.init_args.model_name_or_path": tiny_base("t5"),
        "model.init_args.generation.max_new_tokens": 4,
        "data": "DialogSumDataModule",
        "data.init_args.path": sample,
        "data.init_args.batch_size": 2,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 2,
        "trainer.limit_val_batches": 1,
        "trainer.num_sanity_val_steps": 0,
    }
    seen: list[Trainer] = []
    plain = Trainer.fit

    @functools.wraps(plain)  # LightningCLI reads its signature
    def fit(trainer, *args, **kwargs):
        seen.append(trainer)
        return plain(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "fit", fit)

    def run(*words: str) -> tuple[int, list[str]]:
        status = main(["fit", *(f"--{name}={value}" for name, value in given.items()), *words])
        return status, [type(callback).__name__ for callback in seen[-1].callbacks] if seen else []

    return run


def test_the_file_names_every_callback_of_ours():
    classes = (src.callbacks.__dict__[name] for name in src.callbacks.__all__)
    callbacks = {cls for cls in classes if isinstance(cls, type) and issubclass(cls, Callback)}
    ours = {f"src.callbacks.{cls.__name__}" for cls in callbacks}
    assert {entry["class_path"] for entry in yaml.safe_load(CALLBACKS.read_text())} == ours


def test_one_in_the_trainers_list_takes_the_place_of_ours(fit):
    status, names = fit(
        '--trainer.callbacks=[{"class_path": "Checkpoints", "init_args": {"every_n_steps": 1}},'
        ' {"class_path": "LearningRateMonitor"}]'
    )
    assert status == 0
    assert names.count("Checkpoints") == 1
    assert {"LearningRateMonitor", "ExactResume", "SampleTable"} <= set(names)
    saved = yaml.safe_load(next(Path("runs").glob("*/config.yaml")).read_text())
    assert {"class_path": "src.callbacks.ExactResume", "init_args": {"config": None}} in saved["default_callbacks"]


@pytest.mark.slow
def test_a_run_goes_without_any_of_ours_and_is_resumed_by_lightning_alone(fit):
    own = ["--default_callbacks=[]", '--trainer.callbacks=[{"class_path": "ModelCheckpoint"}]']
    status, names = fit(*own)
    assert status == 0
    assert not {"Checkpoints", "ExactResume", "SampleTable", "StopOnSignal"} & set(names)
    [checkpoint] = Path("runs").glob("*/checkpoints/*.ckpt")
    status, _ = fit(*own, f"--ckpt_path={checkpoint}", "--trainer.max_steps=3")
    assert status == 0
    assert len(list(Path("runs").glob("*/checkpoints/*.ckpt"))) >= 2


def test_a_list_may_be_a_file(fit, tmp_path, capfd):
    (tmp_path / "mine.yaml").write_text("- class_path: Throughput\n")
    status, names = fit("--default_callbacks=mine.yaml")
    assert status == 0
    assert "Throughput" in names
    assert "Checkpoints" not in names
    capfd.readouterr()
    assert fit("--default_callbacks=nowhere.yaml")[0] == 2
    assert "nowhere.yaml" in capfd.readouterr().err.strip().splitlines()[-1]
