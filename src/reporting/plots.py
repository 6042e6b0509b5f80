"""Line plots, histograms and scatter plots as SVG, in the page's colours and with points for tooltips."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.reporting.runs import Curve

MAX_POINTS = 400
COLORS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700", "#57606a", "#0a7ea4")
INK, RULE = "#656d76", "#d0d7de"
VARIABLES = {INK: "var(--quiet)", RULE: "var(--rule)"} | {color: f"var(--run-{i})" for i, color in enumerate(COLORS)}
SIZE = (331.0, 166.0)  # points, the unit of the drawing


@dataclass(frozen=True)
class Mark:
    """A point of a plot with its tooltip.

    Attributes:
        x: Distance from the left of the drawing, in points.
        y: Distance from the top of the drawing, in points.
        color: Its colour, as CSS.
        text: The tooltip's text.
    """

    x: float
    y: float
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


def color_of(number: int) -> str:
    """A run's colour, by its index among the runs."""
    return COLORS[number % len(COLORS)]


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


def curves(named: Mapping[int, Curve], title: str) -> Picture:
    """Draw one metric over steps.

    Args:
        named: The curves, by the run's index among the runs, which decides its colour.
        title: The metric's name, for screen readers.
    """
    canvas = _Canvas(title)
    for number, curve in named.items():
        points = thin(curve)
        marker = "o" if len(points) < 20 else None
        canvas.axes.plot(*zip(*points, strict=True), color=color_of(number), linewidth=1.4, marker=marker, markersize=3)
        canvas.mark([(step, value, f"step {step}: {figure_text(value)}") for step, value in points], color_of(number))
    return canvas.draw()


def trade_off(named: Mapping[int, Sequence[tuple[int, float, float]]], title: str) -> Picture:
    """Draw benefit (y) against cost (x), such as reward against KL, with the Pareto frontier.

    Args:
        named: Triples (step, cost, benefit), by the run's index among the runs.
        title: A description, for screen readers.
    """
    canvas = _Canvas(title)
    for number, points in named.items():
        color = color_of(number)
        canvas.axes.scatter([x for _, x, _ in points], [y for _, _, y in points], s=9, color=color, alpha=0.5)
        edge = frontier([(x, y) for _, x, y in points])
        canvas.axes.plot(*zip(*edge, strict=True), color=color, linewidth=1.4, drawstyle="steps-post")
        canvas.mark(
            [(x, y, f"step {step}: {figure_text(y)} for {figure_text(x)} nats") for step, x, y in points], color
        )
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
    for values, color, name in ((before, INK, "before"), (after, color_of(number), "after")):
        counts = [0] * bins
        for value in values:
            counts[min(int((value - low) / (high - low) * bins), bins - 1)] += 1
        canvas.axes.stairs(counts, edges, color=color, linewidth=1.4, fill=False)
        canvas.axes.stairs(counts, edges, color=color, alpha=0.18, fill=True)
        spans = zip(itertools.pairwise(edges), counts, strict=True)
        words = f"{name}: {{}} from {{}} to {{}}".format
        canvas.mark(
            [((a + b) / 2, count, words(count, figure_text(a), figure_text(b))) for (a, b), count in spans], color
        )
    return canvas.draw()


class _Canvas:
    """A figure of one size in the page's colours."""

    def __init__(self, title: str) -> None:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        style: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9, "font.family": "sans-serif"}
        self._style = style | {"axes.edgecolor": RULE, "xtick.color": INK, "ytick.color": INK, "figure.dpi": 72}
        self._title = title
        self._marks: list[tuple[float, float, str, str]] = []
        with mpl.rc_context(self._style):
            self._figure = Figure(figsize=(SIZE[0] / 72, SIZE[1] / 72), dpi=72)
            self._figure.patch.set_alpha(0)
            self.axes = self._figure.add_axes((0.14, 0.13, 0.83, 0.82))
            self.axes.patch.set_alpha(0)
            self.axes.spines[["top", "right"]].set_visible(False)
            self.axes.grid(axis="y", color=RULE, linewidth=0.5)

    def mark(self, points: Sequence[tuple[float, float, str]], color: str) -> None:
        """Add tooltips for points (x, y, text)."""
        self._marks += [(x, y, color, text) for x, y, text in points]

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
        for x, y, color, text in self._marks:
            place = self.axes.transData.transform((x, y))
            marks.append(Mark(round(float(place[0]), 1), round(SIZE[1] - float(place[1]), 1), VARIABLES[color], text))
        return Picture(svg, tuple(marks))
