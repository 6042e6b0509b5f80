"""What is in a range and what is not, and what is said of it."""

from __future__ import annotations

import pytest

from src.errors import ParleyError
from src.ranges import ANY, COUNT, NOT_NEGATIVE, PROBABILITY, SEED, SHARE, Range, refuse_outside


@pytest.mark.parametrize("allowed", [ANY, COUNT, NOT_NEGATIVE, PROBABILITY, SEED, SHARE])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 10**20, -(10**20)])
def test_none_takes_these(allowed, value):
    assert not allowed.holds(value)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "said"),
    [
        (Range(0, 1), [0, 0.5], [-1e-9, 1], "0 or more and below 1"),
        (Range(0, most=1, above=True), [1e-9, 1], [0, 1.1], "above 0 and at most 1"),
        (Range(1), [1, 2**63 - 1], [0, 2**63], "1 or more"),
        (Range(0, 2**32), [0, 2**32 - 1], [2**32], "0 or more and below 2**32"),
        (Range(0, most=2**16), [2**16], [2**16 + 1], "0 or more and at most 65536"),
        (ANY, [-(2**63), 0.1], [2**63], "a finite number below 2**63"),
        (Range(0, note="0 is none"), [0], [-1], "0 or more (0 is none)"),
    ],
)
def test_edges(allowed, inside, outside, said):
    assert [allowed.holds(value) for value in inside] == [True] * len(inside)
    assert [allowed.holds(value) for value in outside] == [False] * len(outside)
    assert str(allowed) == said


def test_the_setting_is_named():
    class Settings:
        size, rate = 0, None

    with pytest.raises(ParleyError, match=r"^model\.size is 0; it must be 1 or more\.$"):
        refuse_outside(Settings(), {"rate": COUNT, "size": COUNT}, "model.")
    refuse_outside(Settings(), {"rate": COUNT, "size": NOT_NEGATIVE})
