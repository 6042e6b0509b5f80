"""Processes agree without their GPUs."""

from __future__ import annotations

import pytest

from src.parallel.hosts import Hosts
from tests.parallel.two import on_two


def work(rank: int) -> list[int]:
    hosts = Hosts(2)
    return [hosts.largest(value) for value in (0, 15 * rank, 15 * (1 - rank), 0)]


@pytest.mark.slow
def test_both_hear_of_the_largest_value(tmp_path):
    found = on_two(work, tmp_path / "store")
    assert found == {0: [0, 15, 15, 0], 1: [0, 15, 15, 0]}


def test_one_process_alone_needs_no_group():
    assert [Hosts(1).largest(value) for value in (0, 10)] == [0, 10]
