"""The figures of runs: those to begin with, and all of them side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from src.reporting.kinds import baselines
from src.reporting.plots import figure_text
from src.reporting.runs import Run

BOOKKEEPING = ("time/", "ppo/", "tokens/", "train/tokens_per_second", "train/peak_memory_mib", "objective/kl_coef")
# What is not folded away, in this order.
OF_EVALUATION = (
    *("rouge1", "rougeL", "toxicity_mean", "toxicity_improvement", "reward", "kl"),
    *("accuracy", "rewards/accuracies", "loss", "perplexity"),
)
OF_TRAINING = ("train/loss", "env/reward_mean", "objective/kl", "rewards/accuracies", "rewards/margins")
STAGES = {"test": "Test", "val": "Validation"}
TRAINING = "Training"


@dataclass(frozen=True)
class Headline:
    """A figure to begin with.

    Attributes:
        label: What it is.
        value: As a person reads it.
        note: What it was before, or its interval.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A run's last value of a metric.

    Attributes:
        value: The figure.
        against: The place of the first run whose figure means the same; None for that run itself.
        difference: From that run's.
    """

    value: float
    against: int | None = None
    difference: float = 0.0


@dataclass(frozen=True)
class FigureTable:
    """Metrics of some runs.

    Attributes:
        title: What they are of.
        metrics: Their names.
        runs: The places of the runs that have one of them.
        cells: One a metric and run; None where a run does not have it.
    """

    title: str
    metrics: tuple[str, ...]
    runs: tuple[int, ...]
    cells: tuple[tuple[Cell | None, ...], ...]


def headlines(run: Run) -> Iterator[Headline]:
    """What a person asks of a run first, of the test where there was one and else of the last validation."""
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
    """Seconds of an iteration by phase: means over those that were logged."""
    times = {name.removeprefix("time/"): curve for name, curve in run.curves.items() if name.startswith("time/")}
    return {name: sum(value for _, value in curve) / len(curve) for name, curve in times.items()}


def figure_tables(runs: Sequence[Run]) -> tuple[list[FigureTable], list[FigureTable]]:
    """The last figures: those that people look at first, and the others; test, validation and training apart."""
    names = sorted({name for run in runs for name in run.curves if not name.startswith(BOOKKEEPING)})
    stages: dict[str, list[str]] = {title: [] for title in (*STAGES.values(), TRAINING)}
    for name in names:
        stages[STAGES.get(name.partition("/")[0], TRAINING)].append(name)
    first: list[FigureTable] = []
    others: list[FigureTable] = []
    for title, metrics in stages.items():
        key = [name for name in _key(title) if name in metrics]
        rest = [name for name in metrics if name not in key]
        first += [_table(runs, title, key)] if key else []
        others += [_table(runs, title, rest)] if rest else []
    return first, others


def _key(title: str) -> list[str]:
    stage = next((stage for stage, called in STAGES.items() if called == title), None)
    return list(OF_TRAINING) if stage is None else [f"{stage}/{name}" for name in OF_EVALUATION]


def _table(runs: Sequence[Run], title: str, metrics: Sequence[str]) -> FigureTable:
    having = tuple(i for i, run in enumerate(runs) if any(name in run.curves for name in metrics))
    rows = []
    for metric in metrics:
        bases = baselines(runs, metric)
        rows.append(tuple(_cell(runs, metric, number, bases.get(number)) for number in having))
    return FigureTable(title, tuple(metrics), having, tuple(rows))


def _cell(runs: Sequence[Run], metric: str, number: int, base: int | None) -> Cell | None:
    if base is None:
        return None
    value = runs[number].figures[metric]
    return Cell(value) if base == number else Cell(value, base, value - runs[base].figures[metric])
