"""The road from nothing to a model that summarises, offline."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import src
from src.errors import ParleyError, StoppedBySignalError
from src.metrics.rouge_scorer import ExampleScorer

log = logging.getLogger(__name__)

MODEL_SIZES = (
    "--hidden-size",
    "128",
    "--layers",
    "2",
    "--heads",
    "4",
    "--feed-forward-size",
    "512",
    "--vocab-size",
    "1200",
    "--untied-head",
)


@dataclass(frozen=True)
class DemoResult:
    """What the demo shows at its end.

    Attributes:
        rouge1_before: ROUGE-1 of the model with random weights, mean over the test split's references.
        rouge1_after: The same after training.
        examples: A few test dialogues: prompt, a reference and the trained model's summary.
        seconds: How long it all took.
        checkpoint: The trained model.
        output: Where its exported directory is.
    """

    rouge1_before: float
    rouge1_after: float
    examples: list[dict[str, str]]
    seconds: float
    checkpoint: Path
    output: Path


def run_demo(run_command: Callable[[Sequence[str]], int], directory: Path, *, num_examples: int) -> DemoResult:
    """Make a base model, test it, train it, test it again, export it; an earlier demo there is replaced.

    Args:
        run_command: Runs `parley` with the words given, as a user would.
        directory: Where all of it goes.
        num_examples: How many dialogues to show.

    Raises:
        ParleyError: This is not a clone of the repository, so that the recipe is not at hand.
    """
    config = Path(src.__file__).parents[1] / "configs" / "demo" / "dialogsum_seq2seq.yaml"
    if not config.is_file():
        raise ParleyError(f"the demo's recipe is not at {config}; run it from a clone of the repository.")
    start = time.perf_counter()
    base = directory / "base"
    shared = [
        *("-c", str(config)),
        *("--model.init_args.model_name_or_path", str(base)),
        *("--data.init_args.path", str(Path(src.__file__).parent / "datamodules" / "sample")),
    ]

    for earlier in ("before", "fit", "after"):  # a run's files are added to, and this is another run
        shutil.rmtree(directory / earlier, ignore_errors=True)

    def step(title: str, *words: str) -> None:
        log.info("\n▶ %s: parley %s", title, words[0])
        status = run_command(words)
        if status > 128:
            raise StoppedBySignalError(f"stopped in the step “{title}”.", status - 128)
        if status:
            raise ParleyError(f"the step “{title}” failed; run it by itself to see more.")

    def logs_to(name: str) -> list[str]:
        logger = {
            "class_path": "RunLogger",
            "init_args": {"save_dir": str(directory), "name": "", "version": name},
        }
        return ["--trainer.logger", json.dumps(logger)]

    step(
        "A base model from scratch", "init", "--architecture", "t5", *MODEL_SIZES, "--output", str(base), "--overwrite"
    )
    step("What it says before training", "test", *shared, *logs_to("before"))
    step("Training", "fit", *shared, *logs_to("fit"))
    checkpoint = max((directory / "fit" / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    step("What it says now", "test", *shared, *logs_to("after"), "--ckpt_path", str(checkpoint))
    output = directory / "model"
    step(
        "A directory for transformers",
        "export",
        "--checkpoint",
        str(checkpoint),
        "--output",
        str(output),
        "--overwrite",
    )
    rows = _read(directory / "after" / "predictions.csv")
    shown = rows[:: max(1, len(rows) // num_examples)][:num_examples]
    return DemoResult(
        rouge1_before=_rouge1(_read(directory / "before" / "predictions.csv")),
        rouge1_after=_rouge1(rows),
        examples=[
            {"prompt": row["prompt"], "reference": row["reference1"], "summary": row["prediction"]} for row in shown
        ],
        seconds=time.perf_counter() - start,
        checkpoint=checkpoint,
        output=output,
    )


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _rouge1(rows: list[dict[str, str]]) -> float:
    score = ExampleScorer()
    scores = [
        score(row["prediction"], [text for key, text in row.items() if key.startswith("reference") and text])["rouge1"]
        for row in rows
    ]
    return sum(scores) / len(scores)
