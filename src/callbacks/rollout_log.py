"""A file of all responses that a Module trained on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from src.callbacks.run_directory import run_directory
from src.contracts import ShowsRollouts
from src.writing import adding_to, writing


class RolloutLog(Callback):
    """Writes every response of every iteration to `rollouts.jsonl` in the run's directory.

    A line is `step`, the optimiser steps by then, and a `RolloutRecord`: iteration, index, prompt, response, score,
    advantage and whether it ended. A resumed run deletes the lines written after its checkpoint. Nothing is written
    for Modules that make no rollouts.
    """

    def __init__(self) -> None:
        self._file: Path | None = None
        self._size = 0  # length of the file, in bytes, at the run's current step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file and cut off what was written after the checkpoint."""
        directory = run_directory(trainer)  # a collective call: on every process
        if not isinstance(pl_module, ShowsRollouts) or not trainer.is_global_zero:
            return
        self._file = directory / "rollouts.jsonl"
        with writing(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as stream:
                self._size = min(self._size, stream.tell())
                stream.truncate(self._size)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the responses of the iteration that this step started, if it started one."""
        if self._file is None or not isinstance(pl_module, ShowsRollouts):
            return
        lines = [{"step": trainer.global_step} | asdict(record) for record in pl_module.rollout_records()]
        with adding_to(self._file), self._file.open("a", encoding="utf-8", newline="") as stream:
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self._size = self._file.stat().st_size

    def state_dict(self) -> dict[str, Any]:
        """The file's length, in bytes."""
        return {"size": self._size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the file's length, to which `on_train_start` cuts it back."""
        self._size = max(int(state_dict["size"]), 0)
