"""Finds the checkpoint that a run resumes from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from src.callbacks.storage import CheckpointRefusedError, lacking_to_go_on, newest_that_will_do, read_checkpoint
from src.errors import ParleyError

log = logging.getLogger(__name__)


def choose_checkpoint(asked: str, root: Path, settings: dict[str, Any], *, may_start_fresh: bool = True) -> Path | None:
    """Find the checkpoint that `--ckpt_path` means.

    Args:
        asked: A file; `last`, the newest intact checkpoint of this recipe under the root; or `best`, the newest intact
            `best.ckpt` of this recipe.
        root: The directory of runs.
        settings: The run's settings; a checkpoint of another Module or base model is not this recipe's, nor, for
            training, one of another DataModule. The `dirpath` that they give to `Checkpoints` is searched too.
        may_start_fresh: Whether the run may do without a checkpoint: true for training, false for testing.

    Returns:
        The file; None where `last` finds none, so that the run starts fresh.

    Raises:
        ParleyError: The file is missing or damaged, or `best` (when not training, also `last`) finds none.
    """
    if asked not in ("last", "best"):
        checkpoint = read_checkpoint(asked, mmap=True)
        if may_start_fresh and (reason := lacking_to_go_on(checkpoint)):
            raise CheckpointRefusedError(asked, reason)
        return Path(asked)
    pattern = "best.ckpt" if asked == "best" else "step=*.ckpt"
    folders = [*_named(settings), *(path for depth in ("", "*/", "*/*/") for path in root.glob(f"{depth}checkpoints"))]
    each_once = {folder.resolve(): folder for folder in folders}.values()
    files = [file for folder in each_once for file in folder.glob(pattern)]
    found = newest_that_will_do(files, lambda file: _why_not(file, settings, to_train=may_start_fresh), log.warning)
    if found is not None:
        log.info("Going on from %s.", found)
    elif asked == "last" and not may_start_fresh:
        raise ParleyError(f"no checkpoint of this recipe under {root}; train first, or give a .ckpt file.")
    elif asked == "best":
        raise ParleyError(f"no best.ckpt of this recipe under {root}; set Checkpoints' monitor, or give a file.")
    else:
        log.warning("No checkpoint of this recipe under %s: starting fresh.", root)
    return found


def _named(settings: dict[str, Any]) -> list[Path]:
    """The callbacks' `dirpath` settings."""
    callbacks = _at(settings, ("trainer", "callbacks"))
    named = (_at(callback, ("init_args", "dirpath")) for callback in callbacks or ())
    return [Path(path) for path in named if path]


def _why_not(file: Path, settings: dict[str, Any], *, to_train: bool) -> str | None:
    try:
        checkpoint = read_checkpoint(file, mmap=True)
    except CheckpointRefusedError as error:
        return error.reason
    if to_train and (reason := lacking_to_go_on(checkpoint)):
        return reason
    saved = _at(checkpoint, ("callbacks", "ExactResume", "config")) or {}
    places = [("model", "class_path"), ("model", "init_args", "model_name_or_path")]
    if to_train:  # what was trained on pairs may be tested on dialogues
        places.append(("data", "class_path"))
    for place in places:
        before, now = _at(saved, place), _at(settings, place)
        if saved and before != now:
            return f"it is of another recipe ({'.'.join(place)} was {before}, not {now})"
    had_adapter, has_adapter = (bool(_at(of, ("model", "init_args", "lora"))) for of in (saved, settings))
    if saved and had_adapter != has_adapter:
        return f"it is of another recipe ({'with' if had_adapter else 'without'} model.init_args.lora)"
    return None


def _at(settings: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        settings = settings.get(key, {}) if isinstance(settings, dict) else None
    return settings
