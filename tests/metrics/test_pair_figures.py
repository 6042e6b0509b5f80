import math

import pytest
import torch
from scipy.stats import binomtest

from src.metrics.pairs import PairFigures, wilson_interval


@pytest.mark.parametrize(("right", "of"), [(0, 5), (5, 5), (37, 100), (999, 1000), (1, 1)])
def test_the_interval_is_scipys(right, of):
    expected = binomtest(right, of).proportion_ci(method="wilson")
    assert wilson_interval(right, of) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_pair_has_no_figures():
    figures = PairFigures()
    figures.update([], *torch.zeros(3, 0))
    assert all(math.isnan(figure) for figure in figures.compute().values())


def brute_force(chosen, rejected, bins=20):
    """Expected calibration error, bin by bin."""
    rows = [(1 / (1 + math.exp(-abs(c - r))), c > r) for c, r in zip(chosen, rejected, strict=True)]
    error = 0.0
    for place in range(bins):
        inside = [row for row in rows if place / bins < row[0] <= (place + 1) / bins]
        if inside:
            confidence, right = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            error += len(inside) / len(rows) * abs(confidence - right)
    return error


def test_figures_are_brute_force_s_whatever_the_batches_are():
    torch.manual_seed(0)
    chosen, rejected, loss = torch.randn(3, 41)
    parts = [[5, 3], list(range(6, 41)), [], [4, 0, 1, 2]]
    seen = []
    for order in (parts, parts[::-1], [list(range(41))]):
        figures = PairFigures()
        for rows in order:
            figures.update(rows, chosen[rows], rejected[rows], loss[rows])
        seen.append(figures.compute())
    assert seen[0] == seen[1] == seen[2]
    assert seen[0]["accuracy"] == pytest.approx(sum((chosen > rejected).tolist()) / 41)
    assert seen[0]["margin"] == pytest.approx((chosen - rejected).double().mean().item(), abs=1e-7)
    assert seen[0]["loss"] == pytest.approx(loss.double().mean().item(), abs=1e-7)
    expected = brute_force(chosen.tolist(), rejected.tolist())
    assert seen[0]["calibration_error"] == pytest.approx(expected, abs=1e-5)


def test_pairs_drawn_from_their_own_probabilities_are_calibrated_and_doubled_margins_are_not():
    """What the figure is for: it is near 0 where rewards mean what they say."""
    generator = torch.Generator().manual_seed(1)
    margins = torch.randn(20_000, generator=generator) * 2
    right = torch.rand(20_000, generator=generator) < margins.abs().sigmoid()
    signed = torch.where(right, margins.abs(), -margins.abs())
    errors = []
    for scale in (1, 2):
        figures = PairFigures()
        figures.update(range(20_000), signed * scale, torch.zeros(20_000), torch.zeros(20_000))
        errors.append(figures.compute()["calibration_error"])
    assert errors[0] < 0.015
    assert errors[1] > 0.08


def test_ties_are_not_right():
    figures = PairFigures()
    figures.update([0, 1], torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), torch.zeros(2))
    assert figures.compute()["accuracy"] == 0.5
