"""A record of a run's settings, commit and library versions, sent to every logger at its start."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

import src

LIBRARIES = ("torch", "lightning", "transformers", "peft", "trl", "datasets", "torchmetrics", "wandb")


class RunRecord(Callback):
    """Logs the settings, the commit and the library versions as hyperparameters.

    Args:
        config: The run's settings. The command fills it in.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config = config or {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the record to the loggers, on rank 0."""
        if not trainer.is_global_zero:
            return
        record = {"config": self.config, "git": git_state(), "environment": environment()}
        for logger in trainer.loggers:
            logger.log_hyperparams(record)


def git_state() -> dict[str, Any]:
    """`commit` and `changed` (whether files differ from it) of the code; empty outside a git checkout."""
    directory = Path(src.__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=directory, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain"], cwd=directory, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "changed": bool(changes)}


def environment() -> dict[str, str]:
    """Versions of Python, Parley and the libraries that matter."""
    versions = {"python": platform.python_version(), "parley": src.__version__}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions
