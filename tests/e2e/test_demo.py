"""What the README's first page promises, for real: the demo, and PPO on the model that it makes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import make_pictures

pytestmark = pytest.mark.slow


def last_row(metrics: Path) -> dict[str, float]:
    with metrics.open() as stream:
        row = list(csv.DictReader(stream))[-1]
    return {name: float(value) for name, value in row.items() if value}


def test_the_demo_learns_to_summarise_and_ppo_takes_the_insults_out(parley: Callable[..., int], tmp_path: Path):
    """One test, so that the demo is made once however the tests are dealt to processes."""
    pytest.importorskip("profanity_check")
    demo = tmp_path / "demo"
    assert parley("demo", "--output", demo) == 0
    before, after = (last_row(demo / part / "version_0/metrics.csv")["test/rouge1"] for part in ("before", "after"))
    assert before < 0.1
    assert after > 0.6
    for model in ("model", "ppo-model"):
        assert json.loads((demo / model / "config.json").read_text())["model_type"] == "t5"
    assert json.loads((demo / "adapter" / "adapter_config.json").read_text())["r"] == 8
    found = last_row(demo / "ppo-test/version_0/metrics.csv")
    assert found["test/toxicity_improvement"] > 58.47  # of the response alone
    assert found["test/toxicity_improvement_low"] > 40
    assert found["test/rouge1"] > found["test/rouge1_reference"] - 0.02
    page = (demo / "report.html").read_text(encoding="utf-8")
    for part in ("Before and after training", "reward against KL", "Seconds of an iteration", "fall of toxicity"):
        assert part in page

    ppo = ["--run", demo / "ppo/version_0", "--tested", demo / "ppo-test/version_0"]
    for words in (["demo", "--run", demo], ["ppo", *ppo]):
        make_pictures.main([*map(str, words), "--output", f"{words[0]}.png"])
        assert Path(f"{words[0]}.png").read_bytes().startswith(b"\x89PNG")
