"""How runs are told apart in pictures: by colour, and beyond ten runs by dashes too."""

from __future__ import annotations

from dataclasses import dataclass

# The same hue by light and by dark; a sheet of paper is light.
LIGHT = (
    *("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#e8178a"),
    *("#9a8b00", "#6c0040", "#0b0b8f", "#543c00", "#0c9c9c"),
)
DARK = (
    *("#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#ff2f92"),
    *("#f0e400", "#ffc4dc", "#4f63ff", "#b07d4f", "#2ff0e0"),
)


@dataclass(frozen=True)
class RunStyle:
    """How a run is drawn.

    Attributes:
        color: In the light, as a drawing has it.
        variable: The page's, as CSS, which follows light and dark.
        dashes: Lengths of ink and gap by turns, in widths of the line; empty for a line without gaps.
    """

    color: str
    variable: str
    dashes: tuple[float, ...] = ()


def style_of(number: int) -> RunStyle:
    """A run's style, by its place among the runs; no two places have the same."""
    lap, place = divmod(number, len(LIGHT))
    dots = (1.0, 1.5) * (lap - 1)
    return RunStyle(LIGHT[place], f"var(--run-{place})", (5.0, 2.0, *dots) if lap else ())


def palette_css() -> str:
    """The colours as CSS variables, by light, by dark and on paper."""
    light, dark = (
        " ".join(f"--run-{number}: {color};" for number, color in enumerate(colors)) for colors in (LIGHT, DARK)
    )
    return "\n".join(
        (
            f":root {{ {light} }}",
            f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}",
            f"@media print {{ :root {{ {light} }} }}",
        )
    )
