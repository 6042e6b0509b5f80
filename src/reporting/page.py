"""A self-contained HTML report of one run or several."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.reporting.figures import figure_tables, headlines, phase_seconds
from src.reporting.kinds import by_kind, told_apart
from src.reporting.plots import Picture, Series, curves, figure_text, histogram, trade_off
from src.reporting.runs import Answer, Run, differing_settings
from src.reporting.styles import palette_css, style_of
from src.reporting.telling import about, commands, sentence, short_names

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
HISTOGRAMS = ("reward", "toxicity")
PAID, HAD = "objective/kl", "env/reward_mean"
MANY = 3  # from so many runs on, a run is a row and what is long is folded
UNFOLDED = 3  # answers


@dataclass(frozen=True)
class Plotted:
    """A plot of a metric.

    Attributes:
        name: The metric's name.
        picture: The drawing.
        note: A sentence below it.
        legend: The places of the runs in it, where the page has more than one.
    """

    name: str
    picture: Picture
    note: str = ""
    legend: tuple[int, ...] = ()

    @property
    def marks(self) -> str:
        """What can be read off, by line: its name, its colour and its points, as JSON."""
        lines = itertools.groupby(self.picture.marks, key=lambda mark: (mark.series, mark.color))
        told = [[*line, [(mark.x, mark.y, mark.text) for mark in marks]] for line, marks in lines]
        return json.dumps(told, separators=(",", ":"))


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
        runs: What it is about, none of them twice; figures are compared with those of the first of their kind.
        num_examples: Answers to show, and what training changed in each run.
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
    names = short_names([run.name for run in runs])
    known = {str(Path(run.name).resolve()): name for run, name in zip(runs, names, strict=True)}
    plots = list(_plots(runs, names))
    first_figures, other_figures = figure_tables(runs)
    numbers = range(len(runs))
    return environment.get_template("page.html.j2").render(
        style=palette_css() + "\n" + (folder / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        runs=runs,
        names=names,
        many=len(runs) >= MANY,
        style_of=style_of,
        grouped=_grouped,
        sentences=[sentence(run, known) for run in runs],
        about=dict(about(runs)),
        headlines=[list(headlines(run)) for run in runs],
        first_figures=first_figures,
        other_figures=other_figures,
        first=[*_frontiers(runs, names), *(each for each in plots if each.name in FIRST)],
        others=[each for each in plots if each.name not in FIRST],
        phases=[phase_seconds(run) for run in runs],
        settings=differing_settings(runs) if len(runs) > 1 else runs[0].settings,
        answers=side_by_side(runs)[:num_examples],
        unfolded=UNFOLDED,
        pairs={number: runs[number].pairs[:num_examples] for number in numbers if runs[number].pairs},
        changes={number: runs[number].changes[:num_examples] for number in numbers if runs[number].changes},
        histograms=[list(_histograms(run, number)) for number, run in enumerate(runs)],
        commands=[list(commands(run, name)) for run, name in zip(runs, names, strict=True)],
        environments=_environments(runs),
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


def _plots(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Plotted]:
    """Every metric that some run measured more than once, the first ones first, a picture for each kind of figure."""
    metrics = sorted({name for run in runs for name in run.curves})
    for metric in [*(name for name in FIRST if name in metrics), *(name for name in metrics if name not in FIRST)]:
        kinds = by_kind(runs, metric)
        for group, note in zip(kinds.values(), told_apart(list(kinds)), strict=True):
            named = {Series(names[number], number): runs[number].curves[metric] for number in group}
            if any(len(curve) > 1 for curve in named.values()):
                yield Plotted(metric, curves(named, metric), note, _legend(runs, group))


def _frontiers(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Plotted]:
    """Reward against KL, of the rollouts of online methods, a picture for each reward."""
    kinds = by_kind(runs, HAD)
    for group, which in zip(kinds.values(), told_apart(list(kinds)), strict=True):
        named = {}
        for number in group:
            had = dict(runs[number].curves[HAD])
            points = [(step, paid, had[step]) for step, paid in runs[number].curves.get(PAID, ()) if step in had]
            rollouts = {point[1:]: point for point in reversed(points)}  # every minibatch says the same of its rollout
            if len(rollouts) > 1:
                named[Series(names[number], number)] = sorted(rollouts.values())
        if named:
            note = "A point is a rollout; the line is the most that was had for so much KL or less."
            note = f"{which}. {note}" if which else note
            picture = trade_off(named, "reward against KL")
            yield Plotted("reward against KL", picture, note, _legend(runs, [each.number for each in named]))


def _legend(runs: Sequence[Run], group: Sequence[int]) -> tuple[int, ...]:
    """The runs to name below a picture: also one alone, where the page has others."""
    return tuple(group) if len(runs) > 1 else ()


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


def _grouped(values: Sequence[Any]) -> list[tuple[Any, list[int]]]:
    """Each value once, with the places of the runs that have it."""
    found: list[tuple[Any, list[int]]] = []
    for number, value in enumerate(values):
        having = next((having for each, having in found if each == value and type(each) is type(value)), None)
        if having is None:
            found.append((value, [number]))
        else:
            having.append(number)
    return found


def _environments(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Versions and commit, in words, to the places of the runs that had them."""
    found: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        if run.environment:
            words = " · ".join(f"{name} {version}" for name, version in run.environment.items())
            found.setdefault(words, []).append(number)
    return found
