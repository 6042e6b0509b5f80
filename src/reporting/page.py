"""A self-contained HTML report of one run or several."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.reporting.plots import COLORS, Picture, curves, figure_text, histogram, trade_off
from src.reporting.runs import Answer, Run, differing_settings

# Metrics shown first, in this order; all others are in a collapsed section below.
FIRST = (
    "train/loss",
    "val/loss",
    "val/perplexity",
    "val/rouge1",
    "val/rougeL",
    "env/reward_mean",
    "objective/kl",
    "rewards/accuracies",
    "rewards/margins",
    "val/rewards/accuracies",
    "val/reward",
    "val/toxicity_mean",
    "val/kl",
)
ABOUT = {
    "module": "model.class_path",
    "model": "model.init_args.model_name_or_path",
    "data": "data.init_args.path",
    "learning rate": "model.init_args.optimizer.init_args.lr",
    "batch size": "data.init_args.batch_size",
    "epochs": "trainer.max_epochs",
    "precision": "trainer.precision",
    "seed": "seed_everything",
}
BOOKKEEPING = ("time/", "ppo/", "tokens/", "train/tokens_per_second", "objective/kl_coef")
HISTOGRAMS = ("reward", "toxicity")
PAID, HAD = "objective/kl", "env/reward_mean"


@dataclass(frozen=True)
class Plotted:
    """A plot of a metric.

    Attributes:
        name: The metric's name.
        picture: The drawing.
        note: A sentence below it.
    """

    name: str
    picture: Picture
    note: str = ""

    @property
    def marks(self) -> str:
        """The points for the tooltips, by colour, as JSON."""
        by_color: dict[str, list[tuple[float, float, str]]] = {}
        for mark in self.picture.marks:
            by_color.setdefault(mark.color, []).append((mark.x, mark.y, mark.text))
        return json.dumps(by_color, separators=(",", ":"))


@dataclass(frozen=True)
class Headline:
    """A key figure at the top of the page.

    Attributes:
        label: Its label.
        value: Its formatted value.
        note: The value before training, or the confidence interval.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class SideBySide:
    """A prompt and the answers of the runs' models.

    Attributes:
        prompt: The prompt.
        references: The reference answers.
        texts: One answer per run; None for a run that was not asked this prompt.
    """

    prompt: str
    references: tuple[str, ...]
    texts: list[str | None]


def render(runs: Sequence[Run], num_examples: int) -> str:
    """Render the page as HTML.

    Args:
        runs: The runs; the others are compared with the first.
        num_examples: How many answers, judged pairs and changed answers to show.
    """
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure_text
    script = (folder / "page.js").read_text(encoding="utf-8")
    plots = list(_plots(runs))
    return environment.get_template("page.html.j2").render(
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        runs=runs,
        colors=[f"var(--run-{number % len(COLORS)})" for number in range(len(runs))],
        about=dict(_about(runs)),
        headlines=[list(headlines(run)) for run in runs],
        figures=dict(_figures(runs)),
        first=[*_frontier(runs), *(each for each in plots if each.name in FIRST)],
        others=[each for each in plots if each.name not in FIRST],
        phases=[phase_seconds(run) for run in runs],
        settings=differing_settings(runs) if len(runs) > 1 else runs[0].settings,
        answers=side_by_side(runs)[:num_examples],
        pairs={run.name: run.pairs[:num_examples] for run in runs if run.pairs},
        changes={run.name: run.changes[:num_examples] for run in runs if run.changes},
        histograms={run.name: list(_histograms(run, number)) for number, run in enumerate(runs) if run.changes},
        commands=[list(_commands(run)) for run in runs],
    )


def side_by_side(runs: Sequence[Run]) -> list[SideBySide]:
    """Answers by prompt, those that most runs were asked first, otherwise in the runs' order."""
    said: list[dict[str, Answer]] = [{answer.prompt: answer for answer in run.answers} for run in runs]
    prompts = dict.fromkeys(prompt for answers in said for prompt in answers)
    shared = sorted(prompts, key=lambda prompt: -sum(prompt in answers for answers in said))
    rows = []
    for prompt in shared:
        found = [answers.get(prompt) for answers in said]
        references = next(answer.references for answer in found if answer is not None)
        rows.append(SideBySide(prompt, references, [None if answer is None else answer.text for answer in found]))
    return rows


def headlines(run: Run) -> Iterator[Headline]:
    """The key figures of a run: of its test if there was one, else of its last validation."""
    figures = run.figures
    split = "test" if any(name.startswith("test/") for name in figures) else "val"

    def of(name: str) -> float | None:
        return figures.get(f"{split}/{name}")

    fall, low, high = (of(f"toxicity_improvement{end}") for end in ("", "_low", "_high"))
    if fall is not None:
        interval = "" if low is None or high is None else f"95 % interval {low:.1f} to {high:.1f}"
        yield Headline("fall of toxicity", f"{fall:.1f} %", interval)
    for label, name in (("ROUGE-1", "rouge1"), ("reward", "reward")):
        value, before = of(name), of(f"{name}_reference")
        if value is not None:
            yield Headline(label, figure_text(value), "" if before is None else f"{figure_text(before)} before")
    for label, name, unit in (
        ("KL to the reference", "kl", "nats"),
        ("pairs told rightly", "rewards/accuracies", ""),
        ("pairs told rightly", "accuracy", ""),
        ("perplexity", "perplexity", ""),
        ("loss", "loss", ""),
    ):
        if (value := of(name)) is not None:
            yield Headline(label, f"{figure_text(value)} {unit}".strip())


def phase_seconds(run: Run) -> dict[str, float]:
    """Seconds per iteration of each phase: means of the logged `time/…`."""
    times = {name.removeprefix("time/"): curve for name, curve in run.curves.items() if name.startswith("time/")}
    return {name: sum(value for _, value in curve) / len(curve) for name, curve in times.items()}


def _plots(runs: Sequence[Run]) -> Iterator[Plotted]:
    """Plots of every metric that some run logged more than once, those of `FIRST` first."""
    names = sorted({name for run in runs for name in run.curves})
    order = [*(name for name in FIRST if name in names), *(name for name in names if name not in FIRST)]
    for name in order:
        named = {number: run.curves[name] for number, run in enumerate(runs) if name in run.curves}
        if any(len(curve) > 1 for curve in named.values()):
            yield Plotted(name, curves(named, name))


def _frontier(runs: Sequence[Run]) -> Iterator[Plotted]:
    """A plot of reward against KL, for online methods."""
    named = {}
    for number, run in enumerate(runs):
        had = dict(run.curves.get(HAD, ()))
        points = [(step, paid, had[step]) for step, paid in run.curves.get(PAID, ()) if step in had]
        rollouts = {point[1:]: point for point in reversed(points)}  # the minibatches of a rollout log the same values
        if len(rollouts) > 1:
            named[number] = sorted(rollouts.values())
    if named:
        note = "A point is a rollout; the line is the most that was had for so much KL or less."
        yield Plotted("reward against KL", trade_off(named, "reward against KL"), note)


def _histograms(run: Run, number: int) -> Iterator[Plotted]:
    """Histograms of reward and toxicity before and after training, on the same prompts."""
    for name in HISTOGRAMS:
        pairs = [change.figures[name] for change in run.changes if name in change.figures]
        pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
        if pairs:
            before, after = ([pair[time] for pair in pairs] for time in (0, 1))
            means = [figure_text(sum(values) / len(values)) for values in (before, after)]
            note = f"{len(pairs)} answers; mean {means[0]} before (grey), {means[1]} after."
            yield Plotted(name, histogram(before, after, f"{name}, {run.name}", number), note)


def _about(runs: Sequence[Run]) -> Iterator[tuple[str, list[Any]]]:
    for label, name in ABOUT.items():
        row = [run.settings.get(name) for run in runs]
        if any(value is not None for value in row):
            yield label, row
    if any(run.parameters for run in runs):
        counts = [run.parameters for run in runs]
        shares = [None if each is None else f"{each[1]:,} of {each[0]:,} ({each[1] / each[0]:.2%})" for each in counts]
        yield "parameters trained", shares


def _figures(runs: Sequence[Run]) -> Iterator[tuple[str, list[float | None]]]:
    names = dict.fromkeys(name for run in runs for name in run.figures if not name.startswith(BOOKKEEPING))
    for name in sorted(names):
        yield name, [run.figures.get(name) for run in runs]


def _commands(run: Run) -> Iterator[tuple[str, str]]:
    """The commands that repeat, resume and export a run."""
    if run.settings and run.parameters:  # it was a training run
        fit = ["parley", "fit", "-c", str(Path(run.name) / "config.yaml")]
        yield "repeat", shlex.join(fit)
        if run.checkpoint is not None:
            yield "resume", shlex.join([*fit, "--ckpt_path", run.checkpoint])
            yield "export", shlex.join(["parley", "export", "--checkpoint", run.checkpoint, "--output", "models/new"])
