"""What the README's first page promises, for real: the demo, and PPO on the model that it makes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import make_pictures

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "demo" / "dialogsum_ppo.yaml"

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
    before, after = (last_row(demo / part / "metrics.csv")["test/rouge1"] for part in ("before", "after"))
    assert before < 0.1
    assert after > 0.6
    assert json.loads((demo / "model" / "config.json").read_text())["model_type"] == "t5"

    sample = ROOT / "src" / "datamodules" / "sample"
    words = ["-c", RECIPE, "--model.init_args.model_name_or_path", demo / "model", "--data.init_args.path", sample]
    assert parley("fit", *words, "--trainer.limit_val_batches", "0") == 0
    checkpoint = max(tmp_path.glob("runs/*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert parley("test", *words, "--ckpt_path", checkpoint) == 0
    trained, tested = checkpoint.parents[1], max(tmp_path.glob("runs/*/before_after.csv")).parent
    found = last_row(tested / "metrics.csv")
    assert found["test/toxicity_improvement"] > 58.47  # of the response alone
    assert found["test/toxicity_improvement_low"] > 40
    assert found["test/rouge1"] > found["test/rouge1_reference"] - 0.02

    assert parley("report", trained, tested) == 0
    assert "Before and after training" in Path("report.html").read_text(encoding="utf-8")
    for words in (["demo", "--run", demo], ["ppo", "--run", trained, "--tested", tested]):
        make_pictures.main([*map(str, words), "--output", f"{words[0]}.png"])
        assert Path(f"{words[0]}.png").read_bytes().startswith(b"\x89PNG")
