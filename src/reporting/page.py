"""One HTML page about one run or several: no script, no network, everything in one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.reporting.plots import color_of, plot
from src.reporting.runs import Answer, Run, differing_settings

# What people look at first, in this order; every other curve is folded away below.
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


@dataclass(frozen=True)
class Plotted:
    """A metric's picture.

    Attributes:
        name: The metric.
        svg: Its curves.
    """

    name: str
    svg: str


@dataclass(frozen=True)
class SideBySide:
    """A prompt and what each run's model said to it.

    Attributes:
        prompt: What was asked.
        references: Right answers.
        texts: One a run; None where it was not asked this.
    """

    prompt: str
    references: tuple[str, ...]
    texts: list[str | None]


def render(runs: Sequence[Run], num_examples: int) -> str:
    """Write the page.

    Args:
        runs: What it is about; the first is what the others are compared with.
        num_examples: Answers to show, and what training changed in each run.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    plots = list(_plots(runs))
    return environment.get_template("page.html.j2").render(
        runs=runs,
        colors=[color_of(number) for number in range(len(runs))],
        about=dict(_about(runs)),
        figures=dict(_figures(runs)),
        first=[each for each in plots if each.name in FIRST],
        others=[each for each in plots if each.name not in FIRST],
        settings=differing_settings(runs) if len(runs) > 1 else runs[0].settings,
        answers=side_by_side(runs)[:num_examples],
        changes={run.name: run.changes[:num_examples] for run in runs if run.changes},
    )


def side_by_side(runs: Sequence[Run]) -> list[SideBySide]:
    """Answers to the prompts that most runs were asked, in the order of the first of them."""
    said: list[dict[str, Answer]] = [{answer.prompt: answer for answer in run.answers} for run in runs]
    prompts = dict.fromkeys(prompt for answers in said for prompt in answers)
    shared = sorted(prompts, key=lambda prompt: -sum(prompt in answers for answers in said))
    rows = []
    for prompt in shared:
        found = [answers.get(prompt) for answers in said]
        references = next(answer.references for answer in found if answer is not None)
        rows.append(SideBySide(prompt, references, [None if answer is None else answer.text for answer in found]))
    return rows


def _plots(runs: Sequence[Run]) -> Iterator[Plotted]:
    """Every metric that some run measured more than once, the first ones first."""
    names = sorted({name for run in runs for name in run.curves})
    order = [*(name for name in FIRST if name in names), *(name for name in names if name not in FIRST)]
    for name in order:
        curves = {number: run.curves[name] for number, run in enumerate(runs) if name in run.curves}
        if any(len(curve) > 1 for curve in curves.values()):
            yield Plotted(name, plot(curves, name))


def _about(runs: Sequence[Run]) -> Iterator[tuple[str, list[Any]]]:
    for label, name in ABOUT.items():
        row = [run.settings.get(name) for run in runs]
        if any(value is not None for value in row):
            yield label, row


def _figures(runs: Sequence[Run]) -> Iterator[tuple[str, list[float | None]]]:
    names = dict.fromkeys(name for run in runs for name in run.figures if not name.startswith(BOOKKEEPING))
    for name in sorted(names):
        yield name, [run.figures.get(name) for run in runs]


def _figure(value: float) -> str:
    """Four significant digits, as a person reads them."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
