"""Draw the pictures in docs/images from the files that runs leave behind.

python scripts/make_pictures.py demo --run runs/demo
python scripts/make_pictures.py ppo --run runs/demo/ppo/version_0 --tested runs/demo/ppo-test/version_0
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.metrics.rouge_scorer import ExampleScorer
from src.reporting.runs import read_run

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


def column(run: Path, name: str) -> list[tuple[int, float]]:
    """Steps, from 1, and figures of one metric of a run."""
    return [(step + 1, value) for step, value in read_run(run).curves[name]]


def answers(run: Path) -> list[Answer]:
    """A tested run's answers, the worst first."""
    scorer = ExampleScorer()
    found = []
    for said in read_run(run).answers:
        dialogue = said.prompt.strip().removeprefix(INSTRUCTION).removesuffix(ENDING).strip()
        score = scorer(said.text, said.references)["rouge1"]
        found.append(Answer(dialogue, said.references[0], said.text, score))
    return sorted(found, key=lambda answer: answer.rouge1)


def new_figure(height: float):  # type: ignore[no-untyped-def]
    """An empty page."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "text.color": INK, "axes.edgecolor": RULE, "axes.labelcolor": QUIET})
    plt.rcParams.update({"xtick.color": QUIET, "ytick.color": QUIET, "axes.spines.top": False})
    plt.rcParams.update({"axes.spines.right": False})
    return plt.figure(figsize=(11, height), dpi=160, facecolor="white")


def save(figure, output: Path) -> None:  # type: ignore[no-untyped-def]
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, metadata={"Software": None})


def draw_demo(run: Path, output: Path) -> None:
    """Curves on the left, two dialogues on the right: the answers at half and at a quarter of the ranking."""
    figure = new_figure(5.6)
    fit, tested_before, tested_after = (run / part / "version_0" for part in ("fit", "before", "after"))
    loss = column(fit, "train/loss")
    before = column(tested_before, "test/rouge1")[0][1]
    after = column(tested_after, "test/rouge1")[0][1]
    validation = [(0, before), *column(fit, "val/rouge1")]

    panels = ((0.54, loss, LOSS, "training loss"), (0.1, validation, SCORE, "ROUGE-1 on held-out dialogues"))
    for bottom, points, color, label in panels:
        axes = figure.add_axes((0.055, bottom, 0.36, 0.3))
        axes.plot(*zip(*points, strict=True), "-" if color == LOSS else "o-", color=color, linewidth=1.8, clip_on=False)
        axes.set_title(label, loc="left", color=color, size=10)
        axes.set_xlim(0, validation[-1][0])
        axes.set_ylim(0, None if color == LOSS else 1)
    axes.set_xlabel("optimiser steps")
    for step, score in validation:
        axes.annotate(f"{score:.2f}", (step, score), (0, 8), textcoords="offset points", ha="center", color=SCORE)
    figure.text(0.03, 0.95, "A T5 of 1.6 M parameters learns to summarise", size=12, weight="bold", va="top")

    ranking = answers(tested_after)
    top = 0.95
    for share, words in ((2, "The median answer"), (1, "Better than one quarter")):
        answer = ranking[share * len(ranking) // 4]
        title = f"{words} of {len(ranking)} held-out ones: ROUGE-1 {answer.rouge1:.2f}"
        said = [("reference", answer.reference, QUIET), ("model", answer.summary, SCORE)]
        top = _panel(figure, title, answer.dialogue, said, top)
    figure.text(0.48, 0.03, f"mean ROUGE-1 of all {len(ranking)}: {before:.2f} before training, {after:.2f} after")
    save(figure, output)


def draw_ppo(run: Path, tested: Path, output: Path) -> None:
    """What PPO did: reward and KL while it learned, toxicity and ROUGE-1 on held-out dialogues, two answers."""
    figure = new_figure(5.6)
    figure.text(0.03, 0.95, "PPO teaches it to leave the insults out", size=12, weight="bold", va="top")
    curves = (
        ("env/reward_mean", 0.65, SCORE, "reward of sampled answers"),
        ("objective/kl", 0.34, LOSS, "KL of an answer to the reference, nats"),
    )
    for name, bottom, color, label in curves:
        points = [value for _, value in column(run, name)]
        axes = figure.add_axes((0.075, bottom, 0.34, 0.21))
        axes.plot(range(1, len(points) + 1), points, color=color, linewidth=1.8)
        axes.set_title(label, loc="left", color=color, size=10)
        axes.set_xlim(1, len(points))
        axes.set_ylim(0, None)
    axes.set_xlabel("training steps")

    result = read_run(tested)
    measured, changes = result.figures, result.changes
    bars = (("toxicity_mean", "mean toxicity"), ("rouge1", "ROUGE-1"))
    for place, (name, label) in enumerate(bars):
        axes = figure.add_axes((0.075 + 0.19 * place, 0.06, 0.15, 0.13))
        figures = [measured[f"test/{name}_reference"], measured[f"test/{name}"]]
        axes.barh(["before", "after"], figures, color=[RULE, SCORE], height=0.7)
        for bar, value in enumerate(figures):
            axes.text(value, bar, f" {value:.3f}", va="center", size=9)
        axes.set_title(label, loc="left", color=QUIET, size=10)
        axes.invert_yaxis()
        axes.set_xlim(0, max(figures) * 1.3)
        axes.set_xticks([])
        axes.tick_params(left=False)
        if place:
            axes.set_yticks([])
        axes.spines[["bottom", "left"]].set_visible(False)

    top = 0.95
    for rank in (len(changes) // 20, len(changes) // 10):
        change = changes[rank]
        before, after = change.figures["reward"]
        title = f"No. {rank + 1} of {len(changes)} by rise in reward: {after - before:+.2f}"
        dialogue = change.prompt.strip().removeprefix(INSTRUCTION).removesuffix(ENDING).strip()
        said = [("before", change.before, QUIET), ("after", change.after, SCORE)]
        top = _panel(figure, title, dialogue, said, top)
    save(figure, output)


def _panel(figure, title: str, dialogue: str, said: list[tuple[str, str, str]], top: float) -> float:  # type: ignore[no-untyped-def]
    """One dialogue with what was made of it (label, text, colour); returns where the next may begin."""
    left, line_height = 0.48, 0.036
    figure.text(left, top, title, weight="bold", va="top")
    top -= line_height * 1.4
    parts = [("", turn, INK) for turn in dialogue.splitlines()]
    for label, text, color in [*parts, *said]:
        if label:
            top -= line_height * 0.25
            figure.text(left, top, label, color=color, va="top", weight="bold", size=9)
        lines = textwrap.wrap(
            text, LINE_LENGTH if label else LINE_LENGTH + 10, subsequent_indent="" if label else "    "
        )
        for line in lines:
            figure.text(left + (0.075 if label else 0), top, line, color=color, va="top", size=9)
            top -= line_height
    return top - line_height


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=["demo", "ppo"])
    parser.add_argument("--run", type=Path, required=True, help="the demo's directory, or PPO's run")
    parser.add_argument("--tested", type=Path, help="ppo: the run of `parley test`")
    parser.add_argument("--output", type=Path, help="docs/images/PICTURE.png when left out")
    args = parser.parse_args(argv)
    output = args.output or Path("docs/images") / f"{args.picture}.png"
    if args.picture == "demo":
        draw_demo(args.run, output)
    elif args.tested is None:
        parser.error("ppo needs --tested")
    else:
        draw_ppo(args.run, args.tested, output)
    print(f"drawn: {output}")


if __name__ == "__main__":
    main()
