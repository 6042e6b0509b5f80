"""Twenty steps of every Module, whole and LoRA, on one process, with DDP and in shards: one line of losses."""

from __future__ import annotations

import pytest

from benchmarks.strategies import difference, measure
from benchmarks.strategy_cases import CASES, Measured

STEPS = 20


def faults(one: Measured, other: Measured, share: float) -> list[str]:
    """What is not as on one process, but for the share of bytes that a process holds."""
    found = [
        f"{what} differ by {off:.1e}"
        for what in ("losses", "weights", "validation")
        if (off := difference(getattr(other, what), getattr(one, what))) >= 1e-5
    ]
    for what in ("parameter_bytes", "gradient_bytes", "optimizer_bytes"):
        if getattr(other, what) != pytest.approx(getattr(one, what) * share, rel=0.05):
            found.append(f"{getattr(other, what)} of {getattr(one, what)} {what}")
    return found


@pytest.mark.slow
def test_losses_weights_metrics_and_shares(tmp_path):
    """With clipping and weight decay, in float32; what validation measures is over five rows, three and two of them.

    One test, for the processes of each strategy go through all cases.
    """
    measured = measure(list(CASES), 2, tmp_path, steps=STEPS)
    found = {}
    for name, ways in measured.items():
        one = ways["one"]
        assert len(one.losses) == STEPS, name
        assert len(set(one.losses)) > STEPS / 2, name  # they moved
        assert len(one.validation) > 3, name
        for strategy, share in (("ddp", 1.0), ("sharded", 0.5)):
            if wrong := faults(one, ways[strategy], share):
                found[name, strategy] = wrong
    assert found == {}
