"""Curves, histograms and scatters as SVG, to stand in a page: its colours, and figures to be read off."""

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
SIZE = (331.0, 166.0)  # points, which are the units of the drawing


@dataclass(frozen=True)
class Mark:
    """A point of a picture, as a person reads it.

    Attributes:
        x: Place in the drawing, from the left.
        y: Place in the drawing, from the top.
        color: As CSS.
        text: What it says.
    """

    x: float
    y: float
    color: str
    text: str


@dataclass(frozen=True)
class Picture:
    """A drawing and what can be read off it.

    Attributes:
        svg: An `<svg>` element whose colours are the page's, text kept as text.
        marks: Its points.
    """

    svg: str
    marks: tuple[Mark, ...] = ()


def color_of(number: int) -> str:
    """A run's colour, by its place among the runs."""
    return COLORS[number % len(COLORS)]


def figure_text(value: float) -> str:
    """Four significant digits, as a person reads them."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def thin(curve: Curve, most: int = MAX_POINTS) -> Curve:
    """At most so many points: each the mean of neighbours, at the last one's step."""
    if len(curve) <= most:
        return curve
    edges = [len(curve) * i // most for i in range(most + 1)]
    bins = [curve[start:end] for start, end in itertools.pairwise(edges)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in bins]


def curves(named: Mapping[int, Curve], title: str) -> Picture:
    """Draw one metric over steps.

    Args:
        named: The run's place among the runs, which is its colour, to its curve.
        title: The metric's name, as an accessible description.
    """
    canvas = _Canvas(title)
    for number, curve in named.items():
        points = thin(curve)
        marker = "o" if len(points) < 20 else None
        canvas.axes.plot(*zip(*points, strict=True), color=color_of(number), linewidth=1.4, marker=marker, markersize=3)
        canvas.mark([(step, value, f"step {step}: {figure_text(value)}") for step, value in points], color_of(number))
    return canvas.draw()


def trade_off(named: Mapping[int, Sequence[tuple[int, float, float]]], title: str) -> Picture:
    """Draw what was paid against what was had, with the most that was had for so much or less.

    Args:
        named: The run's place among the runs to (step, paid, had).
        title: An accessible description.
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
    """The points that no other beats: none has more for as little or less.

    Args:
        points: (paid, had).
    """
    edge: list[tuple[float, float]] = []
    for paid, had in sorted(points, key=lambda point: (point[0], -point[1])):
        if not edge or had > edge[-1][1]:
            edge.append((paid, had))
    return edge


def histogram(before: Sequence[float], after: Sequence[float], title: str, number: int = 0, bins: int = 24) -> Picture:
    """Draw how often a figure occurs before and after training.

    Args:
        before: In grey.
        after: In the run's colour.
        title: An accessible description.
        number: The run's place among the runs.
        bins: Into how many parts of one width all figures are dealt.
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
        """Let these points be read off: (x, y, what they say)."""
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
