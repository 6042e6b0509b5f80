"""Line plots, histograms and scatter plots as SVG, in the page's colours and with points for tooltips."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.reporting.runs import Curve
from src.reporting.styles import LIGHT, style_of

MAX_POINTS = 400
INK, RULE = "#656d76", "#d0d7de"
VARIABLES = {INK: "var(--quiet)", RULE: "var(--rule)"} | {color: f"var(--run-{i})" for i, color in enumerate(LIGHT)}
SIZE = (331.0, 166.0)  # points, which are the units of the drawing


@dataclass(frozen=True)
class Series:
    """What a line of a picture is of.

    Attributes:
        name: As a person reads it.
        number: The run's place among the runs, which is its style.
    """

    name: str
    number: int


@dataclass(frozen=True)
class Mark:
    """A point of a plot with its tooltip.

    Attributes:
        x: Place in the drawing, from the left.
        y: Place in the drawing, from the top.
        series: The name of the line that it is on.
        color: As CSS.
        text: What it says.
    """

    x: float
    y: float
    series: str
    color: str
    text: str


@dataclass(frozen=True)
class Picture:
    """A plot and its tooltips.

    Attributes:
        svg: An `<svg>` element in the page's colours (CSS variables), with text as text.
        marks: Its points with tooltips.
    """

    svg: str
    marks: tuple[Mark, ...] = ()


def figure_text(value: float) -> str:
    """A number with four significant digits, or as a whole number from 10,000."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def thin(curve: Curve, most: int = MAX_POINTS) -> Curve:
    """Reduce a curve to at most `most` points, each the mean of neighbours at the last one's step."""
    if len(curve) <= most:
        return curve
    edges = [len(curve) * i // most for i in range(most + 1)]
    bins = [curve[start:end] for start, end in itertools.pairwise(edges)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in bins]


def curves(named: Mapping[Series, Curve], title: str) -> Picture:
    """Draw one metric over steps.

    Args:
        named: Each run's curve.
        title: The metric's name, as an accessible description.
    """
    canvas = _Canvas(title)
    for series, curve in named.items():
        points, style = thin(curve), style_of(series.number)
        marker = "o" if len(points) < 20 else None
        line: Any = {"color": style.color, "linewidth": 1.4, "linestyle": (0, style.dashes) if style.dashes else "-"}
        canvas.axes.plot(*zip(*points, strict=True), **line, marker=marker, markersize=3)
        canvas.mark(series.name, style.color, [(x, y, f"step {x}: {figure_text(y)}") for x, y in points])
    return canvas.draw()


def trade_off(named: Mapping[Series, Sequence[tuple[int, float, float]]], title: str) -> Picture:
    """Draw what was paid against what was had, with the most that was had for so much or less.

    Args:
        named: Each run's points: (step, paid, had).
        title: An accessible description.
    """
    canvas = _Canvas(title)
    for series, points in named.items():
        style = style_of(series.number)
        canvas.axes.scatter([x for _, x, _ in points], [y for _, _, y in points], s=9, color=style.color, alpha=0.5)
        edge = frontier([(x, y) for _, x, y in points])
        line: Any = {"color": style.color, "linewidth": 1.4, "linestyle": (0, style.dashes) if style.dashes else "-"}
        canvas.axes.plot(*zip(*edge, strict=True), **line, drawstyle="steps-post")
        told = [(x, y, f"step {step}: {figure_text(y)} for {figure_text(x)} nats") for step, x, y in points]
        canvas.mark(series.name, style.color, told)
    return canvas.draw()


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto frontier: the points with a higher benefit than every point of the same or lower cost.

    Args:
        points: Pairs (cost, benefit).
    """
    edge: list[tuple[float, float]] = []
    for paid, had in sorted(points, key=lambda point: (point[0], -point[1])):
        if not edge or had > edge[-1][1]:
            edge.append((paid, had))
    return edge


def histogram(before: Sequence[float], after: Sequence[float], title: str, number: int = 0, bins: int = 24) -> Picture:
    """Draw the distribution of a figure before and after training.

    Args:
        before: Values before training, drawn in grey.
        after: Values after training, drawn in the run's colour.
        title: A description, for screen readers.
        number: The run's index among the runs.
        bins: The number of equal bins.
    """
    low, high = min((*before, *after)), max((*before, *after))
    if math.isclose(low, high):
        low, high = low - 0.5, high + 0.5
    edges = [low + (high - low) * i / bins for i in range(bins + 1)]
    canvas = _Canvas(title)
    for values, color, name in ((before, INK, "before"), (after, style_of(number).color, "after")):
        counts = [0] * bins
        for value in values:
            counts[min(int((value - low) / (high - low) * bins), bins - 1)] += 1
        canvas.axes.stairs(counts, edges, color=color, linewidth=1.4, fill=False)
        canvas.axes.stairs(counts, edges, color=color, alpha=0.18, fill=True)
        spans = zip(itertools.pairwise(edges), counts, strict=True)
        words = "{} from {} to {}".format
        told = [((a + b) / 2, count, words(count, figure_text(a), figure_text(b))) for (a, b), count in spans]
        canvas.mark(name, color, told)
    return canvas.draw()


class _Canvas:
    """A figure of one size in the page's colours."""

    def __init__(self, title: str) -> None:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        style: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9, "font.family": "sans-serif"}
        self._style = style | {"axes.edgecolor": RULE, "xtick.color": INK, "ytick.color": INK, "figure.dpi": 72}
        self._title = title
        self._marks: list[tuple[str, str, float, float, str]] = []
        with mpl.rc_context(self._style):
            self._figure = Figure(figsize=(SIZE[0] / 72, SIZE[1] / 72), dpi=72)
            self._figure.patch.set_alpha(0)
            self.axes = self._figure.add_axes((0.14, 0.13, 0.83, 0.82))
            self.axes.patch.set_alpha(0)
            self.axes.spines[["top", "right"]].set_visible(False)
            self.axes.grid(axis="y", color=RULE, linewidth=0.5)

    def mark(self, series: str, color: str, points: Sequence[tuple[float, float, str]]) -> None:
        """Let these points of a line be read off: (x, y, what they say)."""
        self._marks += [(series, color, *point) for point in points]

    def draw(self) -> Picture:
        import matplotlib as mpl

        with mpl.rc_context(self._style):
            buffer = io.StringIO()
            self._figure.savefig(buffer, format="svg", metadata={"Title": self._title, "Date": None})
        drawn = buffer.getvalue()
        svg = drawn[drawn.index("<svg") :]
        for color, variable in VARIABLES.items():
            svg = svg.replace(color, variable)
        marks = []
        for series, color, x, y, text in self._marks:
            left, up = (float(each) for each in self.axes.transData.transform((x, y)))
            marks.append(Mark(round(left, 1), round(SIZE[1] - up, 1), series, VARIABLES[color], text))
        return Picture(svg, tuple(marks))
