"""What a stranger's checkpoint may say without anything happening outside the run's directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from src.callbacks import Checkpoints, RolloutLog
from src.callbacks.wandb_logger import WandbRun
from src.errors import ParleyError

STRANGE_IDS = ["../../x", "a/b", "..", ".", "", "a\\b", "a\x1b[31m", "a" * 200]


def test_no_file_elsewhere_is_deleted(tmp_path: Path):
    elsewhere, directory = tmp_path / "precious.ckpt", tmp_path / "checkpoints"
    elsewhere.write_text("")
    checkpoints = Checkpoints(dirpath=str(directory), keep_last=1)
    directory.mkdir()
    (directory / "step=0000002.ckpt").write_text("")
    checkpoints.load_state_dict({"best_score": None, "written": ["../precious.ckpt", "step=0000002.ckpt", 7]})
    checkpoints._drop_old(Trainer(logger=False, accelerator="cpu", enable_checkpointing=False))
    assert elsewhere.exists()
    assert checkpoints.state_dict()["written"] == ["step=0000002.ckpt"]


@pytest.mark.parametrize("name", STRANGE_IDS)
def test_a_wandb_id_makes_no_directory_elsewhere(tmp_path: Path, name: str):
    logger = WandbRun(save_dir=str(tmp_path / "a" / "b"), offline=True)
    with pytest.raises(ParleyError, match="no id of a run"):
        logger.continue_run({"id": name, "rows": 0})
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["x1y2", "run.7", "my run-1_b"])
def test_usual_wandb_ids_are_taken(tmp_path: Path, name: str):
    logger = WandbRun(save_dir=str(tmp_path), offline=True, id=name)
    logger.continue_run({"id": name, "rows": 0})
    assert logger.version == name


def test_a_wandb_id_of_the_configuration_is_checked_too(tmp_path: Path):
    with pytest.raises(ParleyError, match="out of a W&B run"):
        WandbRun(save_dir=str(tmp_path), id="../x")


def test_rollouts_are_not_cut_before_their_beginning():
    log = RolloutLog()
    log.load_state_dict({"size": -5})
    assert log.state_dict() == {"size": 0}
