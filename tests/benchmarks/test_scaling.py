"""Slopes are those of known power laws, and a toy is measured and drawn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.scaling import Point, rows_of, slope


@pytest.mark.parametrize("exponent", [-1.5, -0.2, 0.0, 1.0, 2.0])
def test_a_power_law_is_found_exactly(exponent):
    xs = [64, 100, 256, 999]
    assert slope(xs, [3.7 * x**exponent for x in xs]) == pytest.approx(exponent, abs=1e-12)


def test_a_slope_is_that_of_least_squares():
    chance = np.random.default_rng(0)
    xs = chance.uniform(1, 1000, 20)
    ys = 5 * xs**1.3 * np.exp(chance.normal(0, 0.3, 20))
    found = slope(list(xs), list(ys))
    assert found == pytest.approx(np.polyfit(np.log(xs), np.log(ys), 1)[0], abs=1e-9)

    def error(candidate: float) -> float:  # of the best line of that slope
        rest = np.log(ys) - candidate * np.log(xs)
        return float(((rest - rest.mean()) ** 2).sum())

    candidates = np.linspace(0, 3, 30_001)
    assert found == pytest.approx(min(candidates, key=error), abs=1e-4)


def test_a_group_is_fitted_by_itself():
    points = [Point("length", 2**n, 4, 1000, seconds=4.0**n, peak=2.0**n) for n in range(4, 8)]
    points += [Point("rows", 16, 2**n, 1000, seconds=2.0**n, peak=7.0) for n in range(3)]
    points += [Point("model", 16, 4, 1000, seconds=1.0, peak=1.0)]
    rows = rows_of(points)
    assert [row["varied"] for row in rows] == ["tokens a row"] * 4 + ["rows a step"] * 3 + ["parameters"]
    assert {(row["slope, step s"], row["slope, tokens/s"], row["slope, peak"]) for row in rows} == {
        (2.0, -1.0, 1.0),
        (1.0, 0.0, 0.0),
        (None, None, None),
    }
    assert rows[0]["tokens/s"] == round(16 * 4 / 4.0**4)


@pytest.mark.slow
def test_a_toy_is_measured_and_drawn(capsys, tmp_path):
    picture = tmp_path / "scaling.png"
    sizes = "--hidden-size 16 --layers 1 --heads 1 --vocab-size 400 --length 16 --batch-size 2 --steps 1"
    varied = "--lengths 16 32 --batch-sizes --widths 16"
    assert main(["scaling", *sizes.split(), *varied.split(), "--picture", str(picture), "--json"]) == 0
    out = capsys.readouterr().out
    rows = json.loads(out[out.index("[\n") :])
    assert [(row["varied"], row["length"]) for row in rows] == [
        ("tokens a row", 16),
        ("tokens a row", 32),
        ("parameters", 16),
    ]
    assert all(row["tokens/s"] > 0 and row["peak MiB"] >= 0 and row["step s"] > 0 for row in rows)
    assert math.isfinite(rows[0]["slope, step s"])
    assert rows[2]["slope, step s"] is None
    assert picture.read_bytes().startswith(b"\x89PNG")
