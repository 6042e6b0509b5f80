"""Draw docs/images/demo.png from the files that `parley demo` leaves behind.

python scripts/make_pictures.py --run runs/demo
"""

from __future__ import annotations

import argparse
import csv
import textwrap
from dataclasses import dataclass
from pathlib import Path

from src.metrics.rouge_scorer import ExampleScorer

INK, QUIET, LOSS, SCORE, RULE = "#1f2328", "#656d76", "#8250df", "#0969da", "#d0d7de"
INSTRUCTION, ENDING = "Summarize the following conversation.", "Summary:"
LINE_LENGTH = 62


@dataclass(frozen=True)
class Answer:
    """A test dialogue, a reference, what the model made of it, and its ROUGE-1 against all references."""

    dialogue: str
    reference: str
    summary: str
    rouge1: float


def column(file: Path, name: str) -> list[tuple[int, float]]:
    """Steps and figures of one column of a metrics.csv."""
    with file.open(encoding="utf-8", newline="") as stream:
        return [(int(row["step"]) + 1, float(row[name])) for row in csv.DictReader(stream) if row.get(name)]


def answers(file: Path) -> list[Answer]:
    """A predictions.csv, the worst answer first."""
    scorer = ExampleScorer()
    found = []
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            references = [text for key, text in row.items() if key.startswith("reference") and text]
            dialogue = row["prompt"].strip().removeprefix(INSTRUCTION).removesuffix(ENDING).strip()
            score = scorer(row["prediction"], references)["rouge1"]
            found.append(Answer(dialogue, references[0], row["prediction"], score))
    return sorted(found, key=lambda answer: answer.rouge1)


def draw(run: Path, output: Path) -> None:
    """Curves on the left, two dialogues on the right: the answers at half and at a quarter of the ranking."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "text.color": INK, "axes.edgecolor": RULE, "axes.labelcolor": QUIET})
    plt.rcParams.update({"xtick.color": QUIET, "ytick.color": QUIET, "axes.spines.top": False})
    figure = plt.figure(figsize=(11, 5.6), dpi=160, facecolor="white")
    loss = column(run / "fit" / "metrics.csv", "train/loss")
    before = column(run / "before" / "metrics.csv", "test/rouge1")[0][1]
    after = column(run / "after" / "metrics.csv", "test/rouge1")[0][1]
    validation = [(0, before), *column(run / "fit" / "metrics.csv", "val/rouge1")]

    panels = ((0.54, loss, LOSS, "training loss"), (0.1, validation, SCORE, "ROUGE-1 on held-out dialogues"))
    for bottom, points, color, label in panels:
        axes = figure.add_axes((0.055, bottom, 0.36, 0.3))
        axes.plot(*zip(*points, strict=True), "-" if color == LOSS else "o-", color=color, linewidth=1.8, clip_on=False)
        axes.set_title(label, loc="left", color=color, size=10)
        axes.set_xlim(0, validation[-1][0])
        axes.set_ylim(0, None if color == LOSS else 1)
        axes.spines["right"].set_visible(False)
    axes.set_xlabel("optimiser steps")
    for step, score in validation:
        axes.annotate(f"{score:.2f}", (step, score), (0, 8), textcoords="offset points", ha="center", color=SCORE)
    figure.text(0.03, 0.95, "A T5 of 1.5 M parameters learns to summarise", size=12, weight="bold", va="top")

    ranking = answers(run / "after" / "predictions.csv")
    top = 0.95
    for share, words in ((2, "The median answer"), (1, "Better than one quarter")):
        answer = ranking[share * len(ranking) // 4]
        top = _panel(figure, answer, f"{words} of {len(ranking)} held-out ones: ROUGE-1 {answer.rouge1:.2f}", top)
    figure.text(0.48, 0.03, f"mean ROUGE-1 of all {len(ranking)}: {before:.2f} before training, {after:.2f} after")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, metadata={"Software": None})


def _panel(figure, answer: Answer, title: str, top: float) -> float:  # type: ignore[no-untyped-def]
    """One dialogue with both summaries; returns where the next may begin."""
    left, line_height = 0.48, 0.036
    figure.text(left, top, title, weight="bold", va="top")
    top -= line_height * 1.4
    parts = [(turn, INK, "normal", "") for turn in answer.dialogue.splitlines()]
    parts += [(answer.reference, QUIET, "normal", "reference"), (answer.summary, SCORE, "normal", "model")]
    for text, color, weight, label in parts:
        if label:
            top -= line_height * 0.25
            figure.text(left, top, label, color=color, va="top", weight="bold", size=9)
        lines = textwrap.wrap(
            text, LINE_LENGTH if label else LINE_LENGTH + 10, subsequent_indent="" if label else "    "
        )
        for line in lines:
            figure.text(left + (0.075 if label else 0), top, line, color=color, va="top", size=9, weight=weight)
            top -= line_height
    return top - line_height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="the demo's directory")
    parser.add_argument("--output", type=Path, default=Path("docs/images/demo.png"))
    args = parser.parse_args()
    draw(args.run, args.output)
    print(f"drawn: {args.output}")


if __name__ == "__main__":
    main()
