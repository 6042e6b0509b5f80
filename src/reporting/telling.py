"""What runs are called on a page about them, and what each was, in a sentence."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.reporting.runs import Run

ABOUT = {
    "module": "model.class_path",
    "base model": "model.init_args.model_name_or_path",
    "checkpoint": "ckpt_path",
    "data": "data.init_args.path",
    "learning rate": "model.init_args.optimizer.init_args.lr",
    "batch size": "data.init_args.batch_size",
    "epochs": "trainer.max_epochs",
    "precision": "trainer.precision",
    "seed": "seed_everything",
}


def short_names(names: Sequence[str]) -> list[str]:
    """What tells directories apart: their paths without the parts at either end that all have.

    Args:
        names: Of directories, none of them twice. One alone keeps its last two parts.
    """
    parts = [Path(name).resolve().parts for name in names]
    if len(parts) == 1:
        return [str(Path(*parts[0][-2:]))]
    # Of a run that lies in another's directory something must be left.
    shortest = min(map(len, parts))
    start = min(_alike(parts), shortest - 1)
    end = min(_alike([each[::-1] for each in parts]), shortest - start - 1)
    return [str(Path(*each[start : len(each) - end])) for each in parts]


def sentence(run: Run, known: Mapping[str, str]) -> str:
    """What a run was: what was trained or tested, of what, on what.

    Args:
        run: The run.
        known: Directories of the runs on the page, absolute, to what they are called.
    """
    settings, what = run.settings, _what(run)
    if not settings:
        return f"{what} of unknown settings: there is no config.yaml."
    module = _class(settings.get("model.class_path"))
    base = settings.get("model.init_args.model_name_or_path")
    checkpoint = settings.get("ckpt_path")
    if what == "Fit":
        lora = settings.get("model.init_args.lora.class_path")
        adapter = f" with an adapter ({_class(lora)})" if lora else ""
        gone_on = f", gone on from {_checkpoint(checkpoint, known)}" if checkpoint else ""
        return f"Fit of {module}{adapter} from {base}{gone_on}, on {_data(run, 'train')}: {run.steps:,} steps."
    of = _checkpoint(checkpoint, known) if checkpoint else f"{base} as it is, no checkpoint,"
    return f"{what} of {of} by {module} on {_data(run, 'test' if what == 'Test' else 'validation')}."


def about(runs: Sequence[Run]) -> Iterator[tuple[str, list[Any]]]:
    """The settings that people ask for first, by name, with what each run has."""
    for label, name in ABOUT.items():
        row = [run.settings.get(name) for run in runs]
        if any(value is not None for value in row):
            yield label, row
    if any(run.parameters for run in runs):
        counts = [run.parameters for run in runs]
        shares = [None if each is None else f"{each[1]:,} of {each[0]:,} ({each[1] / each[0]:.2%})" for each in counts]
        yield "parameters trained", shares


def commands(run: Run, name: str) -> Iterator[tuple[str, str]]:
    """What would repeat a run, go on from where it is, and export it.

    Args:
        run: The run.
        name: What it is called, which is where its model goes.
    """
    if run.settings and run.parameters:  # it trained
        fit = ["parley", "fit", "-c", str(Path(run.name) / "config.yaml")]
        yield "repeat", shlex.join(fit)
        if run.checkpoint is not None:
            output = str(Path("models") / name)
            yield "resume", shlex.join([*fit, "--ckpt_path", run.checkpoint])
            yield "export", shlex.join(["parley", "export", "--checkpoint", run.checkpoint, "--output", output])


def _alike(paths: Sequence[tuple[str, ...]]) -> int:
    """How many parts at the start are the same in all."""
    return sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False)))


def _what(run: Run) -> str:
    stages = {name.partition("/")[0] for name in run.curves}
    if run.parameters or stages - {"val", "test"}:
        return "Fit"
    return "Test" if "test" in stages else "Validation"


def _checkpoint(path: object, known: Mapping[str, str]) -> str:
    """A checkpoint's name, and whose it is where that run is on the page."""
    file = Path(str(path)).resolve()
    name = known.get(str(file.parent.parent)) if file.parent.name == "checkpoints" else None
    return f"the checkpoint {path}" if name is None else f"the checkpoint {file.name} of {name}"


def _data(run: Run, split: str) -> str:
    settings = run.settings
    part = settings.get(f"data.init_args.{split}_split") or split
    return f"{settings.get('data.init_args.path')} ({_class(settings.get('data.class_path'))}, {part})"


def _class(path: object) -> str:
    return str(path).rpartition(".")[2]
