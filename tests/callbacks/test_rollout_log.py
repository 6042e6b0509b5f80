"""The log of what a Module learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from src.callbacks import RolloutLog
from src.contracts import RolloutRecord

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


class Learner(BoringModel):
    """Begins an iteration at every third step."""

    begun = 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.begun += batch_idx % 3 == 0
        self.begins = batch_idx % 3 == 0

    def rollout_records(self) -> list[RolloutRecord]:
        if not self.begins:
            return []
        return [RolloutRecord(self.begun, row, "안녕?", f"{row}\n\u2028", 0.5, -0.5, True) for row in range(2)]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def test_every_response_is_a_line_and_a_resumed_run_takes_back_what_its_checkpoint_does_not_know(
    tmp_path: Path,
) -> None:
    file = tmp_path / "rollouts.jsonl"
    settings = {"default_root_dir": tmp_path, "limit_val_batches": 0, "enable_checkpointing": False, **QUIET}
    log = RolloutLog()
    Trainer(max_steps=7, callbacks=[log], **settings).fit(Learner())
    assert [(line["step"], line["iteration"], line["index"]) for line in lines(file)] == [
        (1, 1, 0), (1, 1, 1), (4, 2, 0), (4, 2, 1), (7, 3, 0), (7, 3, 1),
    ]  # fmt: skip
    assert lines(file)[1]["response"] == "1\n\u2028"
    assert "안녕?" in file.read_text(encoding="utf-8")
    whole, state = file.read_bytes(), log.state_dict()

    with file.open("ab") as stream:  # of a run that was killed while it wrote
        stream.write(b'{"step": 9, "iter')
    again = RolloutLog()
    again.load_state_dict(state)
    Trainer(max_steps=1, callbacks=[again], **settings).fit(Learner())
    assert file.read_bytes().startswith(whole)
    assert len(lines(file)) == 8


def test_a_module_without_rollouts_is_left_alone(tmp_path: Path) -> None:
    Trainer(
        max_steps=2,
        callbacks=[RolloutLog()],
        default_root_dir=tmp_path,
        limit_val_batches=0,
        enable_checkpointing=False,
        **QUIET,
    ).fit(BoringModel())
    assert not (tmp_path / "rollouts.jsonl").exists()
