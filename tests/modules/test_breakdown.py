from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from src.errors import ParleyError
from src.modules.breakdown import PATIENCE, Breakdown

NAN, INF = float("nan"), float("inf")
TRAINER = SimpleNamespace(world_size=1, precision="16-true", global_step=7)


def note(losses: list[float]) -> int:
    """How many steps it took to the end."""
    watch = Breakdown()
    for number, loss in enumerate(losses, start=1):
        try:
            watch.note(torch.tensor(loss), TRAINER)
        except ParleyError:
            return number
    return 0


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
@pytest.mark.parametrize("healthy", range(8))
def test_stops_after_a_few_in_a_row(healthy, broken):
    assert healthy + PATIENCE <= note([1.0] * healthy + [broken] * 20) < healthy + 2 * PATIENCE


def test_goes_on_where_they_are_not_in_a_row():
    assert note(([NAN] * (PATIENCE - 1) + [1.0]) * 20) == 0


def test_names_what_helps():
    watch = Breakdown()
    for _ in range(PATIENCE - 1):
        watch.note(torch.tensor(NAN), TRAINER)
    with pytest.raises(ParleyError, match=r"16-true.*bf16-mixed"):
        watch.note(torch.tensor(NAN), TRAINER)
