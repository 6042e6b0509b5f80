"""Eight steps of every Module, whole and LoRA, on one process, with DDP and in shards: one line of losses."""

from __future__ import annotations

import pytest

from benchmarks.strategies import ALONE, Way, difference, measure
from benchmarks.strategy_cases import CASES, Measured

STEPS = 8


def faults(one: Measured, other: Measured, share: float) -> list[str]:
    """What is not as on one process, but for the share of bytes that a process holds."""
    # AdamW makes steps of gradients that are rounding alone, which no loss shows.
    limits = {"losses": 1e-5, "weights": 1e-4, "validation": 1e-5}
    off = {what: difference(getattr(other, what), getattr(one, what)) for what in limits}
    found = [f"{what} differ by {off[what]:.1e}" for what in limits if off[what] >= limits[what]]
    held = {what: getattr(other, what) / getattr(one, what) for what in ("parameter_bytes", "gradient_bytes")}
    held["optimizer_bytes"] = other.optimizer_bytes / one.optimizer_bytes
    return [*found, *(f"{part:.3f} of {what}" for what, part in held.items() if part != pytest.approx(share, rel=0.05))]


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "4 bits"])
def test_losses_weights_metrics_and_shares(tmp_path, quantized):
    """With clipping and weight decay, in float32; what validation measures is over five rows, three and two of them.

    Not one test a case, for the processes of each strategy go through all of them.
    """
    if quantized:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[quantization]'")
    cases = [name for name, case in CASES.items() if case.quantized == quantized]
    measured = measure(cases, [2], tmp_path, steps=STEPS)
    found = {}
    for name, ways in measured.items():
        one = ways[ALONE]
        assert len(one.losses) == STEPS, name
        assert len(set(one.losses)) > STEPS / 2, name  # they moved
        assert len(one.validation) > 3, name
        for strategy in CASES[name].strategies:
            share = 1.0 if strategy == "ddp" else 0.5
            if wrong := faults(one, ways[Way(strategy, 2)], share):
                found[name, strategy] = wrong
    assert found == {}
