"""The picture of `python -m benchmarks scaling`: rates above, memory below, a column for what is varied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.scaling import VARIED, Point, slope
from scripts.make_pictures import INK, QUIET, RULE, SCORE, new_figure, save

MEMORY = "#bc4c00"
PANELS: tuple[tuple[str, str, Callable[[Point], float]], ...] = (
    ("tokens a second", SCORE, lambda point: point.rate),
    ("peak, MiB", MEMORY, lambda point: point.peak),
)


def draw(points: Sequence[Point], device: str, output: Path) -> None:
    """Draw points on logarithmic axes, with their slopes.

    Args:
        points: At least one.
        device: Its name, for the title.
        output: The file.
    """
    figure = new_figure(5.2)
    figure.text(0.03, 0.96, f"A training step on {device}", size=12, weight="bold", va="top", color=INK)
    groups = [(name, [point for point in points if point.varied == varied]) for varied, name in VARIED.items()]
    groups = [(name, group) for name, group in groups if group]
    width = 0.94 / len(groups)
    for column, (name, group) in enumerate(groups):
        for row, (label, color, figure_of) in enumerate(PANELS):
            axes = figure.add_axes((0.06 + column * width, 0.53 - row * 0.42, width - 0.08, 0.29))
            xs, ys = [point.x for point in group], [figure_of(point) for point in group]
            axes.loglog(xs, ys, "o-", color=color, linewidth=1.8)
            _label(axes, xs, ys)
            exponent = f" ∝ x^{slope(xs, ys):.2f}" if len(set(xs)) > 1 else ""
            axes.set_title(f"{label}{exponent}", loc="left", color=color, size=10)
            if row:
                axes.set_xlabel(name)
    save(figure, output)


def _label(axes, xs: Sequence[float], ys: Sequence[float]) -> None:  # type: ignore[no-untyped-def]
    """Ticks where points are, and their values beside them."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xticks(xs, [f"{x / 1e6:,.0f} M" if x >= 1e6 else f"{x:,.0f}" for x in xs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(NullFormatter())
    axes.grid(visible=True, axis="x", color=RULE, linewidth=0.5)
    axes.set_ylim(min(ys) / 1.3, max(ys) * 1.6)
    axes.margins(x=0.12)
    for x, y in zip(xs, ys, strict=True):
        axes.annotate(f"{y:,.0f}", (x, y), (0, 7), textcoords="offset points", ha="center", color=QUIET, size=9)
