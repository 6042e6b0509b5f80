"""A GPU's work counts in the phase that asked for it."""

from __future__ import annotations

import pytest
import torch

from src.modules.online.clock import PhaseClock


@pytest.mark.parametrize(("device", "waits"), [("cpu", 0), ("cuda:1", 2)])
def test_a_gpu_is_waited_for_where_a_phase_ends_and_nowhere_else(monkeypatch, device, waits):
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock = PhaseClock(torch.device(device))
    with clock.phase("rollout"):
        pass
    clock.start()
    clock.stop("update", is_over=False)
    clock.start()
    total = clock.stop("update", is_over=True)
    assert waited == [torch.device(device)] * waits
    assert total == clock.seconds["time/update"] > 0
