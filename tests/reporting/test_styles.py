"""Runs are told apart, by light, by dark and on paper."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from src.reporting.plots import Series, curves
from src.reporting.styles import DARK, LIGHT, palette_css, style_of

XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))  # from linear sRGB
WHITE = (0.9505, 1.0, 1.089)


def xyz(color: str) -> list[float]:
    """CIE XYZ of a colour, as sRGB defines it."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return [sum(weight * part for weight, part in zip(row, linear, strict=True)) for row in XYZ]


def lab(color: str) -> tuple[float, float, float]:
    """CIE L*a*b*, in which a distance of 2.3 can just be seen."""
    x, y, z = (
        math.cbrt(part) if part > 0.008856 else 7.787 * part + 16 / 116
        for part in (value / white for value, white in zip(xyz(color), WHITE, strict=True))
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def contrast(color: str, paper: str) -> float:
    """As WCAG 2 defines it: pictures should have 3."""
    low, high = sorted((xyz(color)[1], xyz(paper)[1]))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("colors", "paper", "grey"), [(LIGHT, "#ffffff", "#656d76"), (DARK, "#0d1117", "#9198a1")], ids=["light", "dark"]
)
def test_ten_colours_are_far_from_each_other_and_from_the_paper(colors, paper, grey):
    assert len(colors) == 10
    for one, other in itertools.combinations((*colors, grey), 2):
        assert math.dist(lab(one), lab(other)) > 28, (one, other)
    assert min(contrast(color, paper) for color in colors) >= 3


def test_no_two_runs_are_drawn_alike():
    styles = [style_of(number) for number in range(60)]
    assert len({(style.variable, style.dashes) for style in styles}) == 60
    assert not any(style.dashes for style in styles[:10])
    assert all(len(style.dashes) % 2 == 0 for style in styles)  # ink and gap by turns


def test_the_page_has_every_colour_by_light_by_dark_and_on_paper():
    light, dark, paper = palette_css().splitlines()
    assert "prefers-color-scheme: dark" in dark
    assert "print" in paper
    for text, colors in ((light, LIGHT), (dark, DARK), (paper, LIGHT)):
        assert re.findall(r"--run-(\d+): (#\w+);", text) == [(str(i), color) for i, color in enumerate(colors)]


def test_of_two_runs_of_one_colour_the_second_is_dashed():
    points = [(0, 1.0), (10, 3.0)]
    picture = curves({Series("first", 0): points, Series("eleventh", 10): points}, "loss")
    drawn = re.findall(r"style=\"fill: none;([^\"]*stroke: var\(--run-0\)[^\"]*)\"", picture.svg)
    assert ["stroke-dasharray" in style for style in drawn] == [False, True]
