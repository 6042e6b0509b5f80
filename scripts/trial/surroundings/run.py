"""A tiny base and a short run, which the cases copy."""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from scripts.trial.tools.forks import Answer, ask
from src.callbacks.storage import read_checkpoint

ROOT = Path(__file__).resolve().parents[3]
SIZES = "--hidden-size 16 --layers 1 --heads 2 --feed-forward-size 32 --vocab-size 300"
STEPS = 4


@dataclass(frozen=True)
class Run:
    """A base, and a run on it with a checkpoint after each of its last three steps.

    Attributes:
        place: Everything is in here; the run is in `runs`.
        base: The model directory.
        version: The run's number.
    """

    place: Path
    base: Path
    version: int = 0

    @property
    def directory(self) -> Path:
        """The run's."""
        return self.place / "runs" / f"version_{self.version}"

    @property
    def last_started(self) -> Run:
        """The newest of the runs beside it: one that could not write its first checkpoint is begun anew."""
        versions = (self.place / "runs").glob("version_*")
        return replace(self, version=max(int(version.name.rpartition("_")[2]) for version in versions))

    @property
    def newest(self) -> Path:
        """Its last checkpoint."""
        return self.directory / "checkpoints" / f"step={STEPS:07d}.ckpt"

    def copy(self, place: Path) -> Run:
        """The run somewhere else, each file as old as it is here."""
        shutil.copytree(self.place / "runs", place / "runs")
        return replace(self, place=place)

    def cut_short_to(self, place: Path) -> None:
        """Put the run there without its last checkpoint."""
        self.copy(place).newest.unlink()

    @cached_property
    def figures(self) -> list[list[str]]:
        """The metric log without the columns that depend on the clock, and the last checkpoint's weights."""
        with (self.directory / "metrics.csv").open(newline="") as stream:
            header, *rows = csv.reader(stream)
        columns = [place for place, name in enumerate(header) if "per_second" not in name and "time/" not in name]
        state = read_checkpoint(self.newest)["state_dict"]
        weights = [[name, *map(str, tensor.flatten().tolist())] for name, tensor in sorted(state.items())]
        return [[row[place] for place in columns] for row in (header, *rows)] + weights


def words_to_evaluate(command: str, base: Path) -> list[str]:
    """A subcommand of Lightning's on four examples."""
    data = "--data.init_args."
    return [
        *(command, "-c", str(ROOT / "configs" / "dialogsum_seq2seq.yaml")),
        *("--model.init_args.model_name_or_path", str(base), "--model.init_args.optimizer.init_args.lr", "0.01"),
        *("--model.init_args.generation.max_new_tokens", "3"),
        *(f"{data}path", str(ROOT / "src" / "datamodules" / "sample"), f"{data}batch_size", "1"),
        *(f"{data}train_split", f"train[:{STEPS}]", f"{data}validation_split", "validation[:2]"),
        *(f"{data}test_split", "test[:2]", f"{data}max_source_length", "24", f"{data}max_target_length", "8"),
        *(f"{data}cache_dir", str(base.parent / "cache"), "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    ]


def words_to_train(base: Path, *more: str) -> list[str]:
    """`fit` for four steps on four examples, and a checkpoint of each step."""
    return [
        *words_to_evaluate("fit", base),
        *("--trainer.max_epochs", "1", "--trainer.num_sanity_val_steps", "0", "--trainer.log_every_n_steps", "1"),
        *("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every_n_steps", "1"),
        *("--trainer.callbacks.keep_last", "3", *more),
    ]


def make_run(place: Path) -> Run:
    """Make a base, and train on it.

    Raises:
        SystemExit: The run failed.
    """
    place.mkdir(parents=True, exist_ok=True)
    (place / "prompts.txt").write_text("Anna: Hello, Ben.\nBen: Good morning.\nAnna: How are you?\n")
    base = place / "base"
    for words in (["init", "--output", str(base), *SIZES.split()], words_to_train(base)):
        answer = ask(words, place, patience=300)
        if answer.status != 0:
            raise SystemExit(f"the run to be damaged could not be made (status {answer.status}): {answer.err}")
    for step, file in enumerate(sorted((place / "runs" / "version_0" / "checkpoints").glob("step=*.ckpt"))):
        os.utime(file, (step, step))  # older than whatever comes after
    return Run(place, base)


def one_line(answer: Answer, command: str) -> str:
    """What is wrong with the way in which a command refused; nothing where it was one line and status 2."""
    lines = [line for line in answer.err.splitlines() if line.startswith(f"parley {command}: ")]
    if answer.status is None:
        return "it never ended"
    if answer.status != 2 or len(lines) != 1 or "Traceback" in answer.err:
        return f"status {answer.status}: {answer.err.strip()[-300:]!r}"
    return ""
