"""Where a run keeps its files."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer


def run_directory(trainer: Trainer) -> Path:
    """The run's own directory; every process must ask, since rank 0 tells the others.

    That is the logger's directory, or one named after the logger's run where several runs share a directory (W&B).
    """
    logger = trainer.logger
    if logger is None:
        return Path(trainer.default_root_dir)
    directory = getattr(logger, "log_dir", None)
    if directory is None:
        directory = Path(logger.save_dir or trainer.default_root_dir) / str(logger.version)
    return Path(trainer.strategy.broadcast(str(directory)))
