"""Curves of several runs as SVG, to stand in a page."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from typing import Any

from src.reporting.runs import Curve

MAX_POINTS = 400
COLORS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700", "#57606a", "#0a7ea4")
INK, RULE = "#656d76", "#d0d7de"


def color_of(number: int) -> str:
    """A run's colour, by its place among the runs."""
    return COLORS[number % len(COLORS)]


def thin(curve: Curve, most: int = MAX_POINTS) -> Curve:
    """At most so many points: each the mean of neighbours, at the last one's step."""
    if len(curve) <= most:
        return curve
    edges = [len(curve) * i // most for i in range(most + 1)]
    bins = [curve[start:end] for start, end in itertools.pairwise(edges)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in bins]


def plot(curves: Mapping[int, Curve], title: str) -> str:
    """Draw one metric.

    Args:
        curves: The run's place among the runs, which is its colour, to its curve.
        title: The metric's name, as an accessible description.

    Returns:
        An `<svg>` element, text kept as text.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9, "font.family": "sans-serif"}
    style |= {"axes.edgecolor": RULE, "xtick.color": INK, "ytick.color": INK}
    with mpl.rc_context(style):
        figure = Figure(figsize=(4.6, 2.3))
        axes = figure.add_axes((0.13, 0.13, 0.84, 0.82))
        for number, curve in curves.items():
            points = thin(curve)
            marker = "o" if len(points) < 20 else None
            axes.plot(*zip(*points, strict=True), color=color_of(number), linewidth=1.4, marker=marker, markersize=3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=RULE, linewidth=0.5)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Title": title, "Date": None})
    drawn = buffer.getvalue()
    return drawn[drawn.index("<svg") :]
