"""What is read of a run's directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.errors import ParleyError
from src.reporting.plots import thin
from src.reporting.runs import differing_settings, read_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run as `fit` leaves it, by hand."""
    directory = tmp_path / "version_0"
    (directory / "samples").mkdir(parents=True)
    (directory / "config.yaml").write_text("seed_everything: 1\nmodel:\n  init_args: {lr: 0.1, lora: null, tags: {}}\n")
    rows = ["epoch,step,train/loss,val/loss", "0,0,3.0,", "0,1,nan,", "0,1,,2.5", "1,2,1.0,", "1,2,0.5,2.0"]
    (directory / "metrics.csv").write_text("\n".join(rows) + "\n")
    for step, text in ((1, "old"), (2, "new")):
        sample = {"index": 0, "id": "a", "prompt": "Q?", "references": ["R"], "prediction": text}
        (directory / "samples" / f"step-{step:07}.jsonl").write_text(json.dumps(sample) + "\n")
    return directory


def test_a_run_is_read_whole(run: Path):
    found = read_run(run)
    assert found.settings == {
        "seed_everything": 1,
        "model.init_args.lr": 0.1,
        "model.init_args.lora": None,
        "model.init_args.tags": {},
    }
    assert found.curves == {"train/loss": [(0, 3.0), (2, 0.5)], "val/loss": [(1, 2.5), (2, 2.0)]}
    assert found.figures == {"train/loss": 0.5, "val/loss": 2.0}
    assert [(each.prompt, each.references, each.text) for each in found.answers] == [("Q?", ("R",), "new")]
    assert found.changes == ()


def test_predictions_and_ppo_s_answers(run: Path):
    (run / "predictions.csv").write_text("id,prompt,reference1,reference2,prediction\n1,P,a,,b\n")
    header = "query,response_before,response_after,reward_before,reward_after,reward_diff"
    (run / "before_after").mkdir()
    for step, after in ((1, "first"), (2, "second")):
        (run / "before_after" / f"step-{step}.csv").write_text(f'{header}\nq,"x, y",{after},0,1,1.0\n')
    found = read_run(run)
    assert [(each.prompt, each.references, each.text) for each in found.answers] == [("P", ("a",), "b")]
    [change] = found.changes
    assert (change.prompt, change.before, change.after, change.figures) == ("q", "x, y", "second", {"reward": (0, 1)})


def test_settings_that_differ(run: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.csv").write_text("epoch,step,val/loss\n0,0,1\n")
    (other / "config.yaml").write_text("seed_everything: 1\nmodel:\n  init_args: {lr: 0.2, lora: null}\n")
    found = differing_settings([read_run(run), read_run(other)])
    assert found == {"model.init_args.lr": [0.1, 0.2], "model.init_args.tags": [{}, None]}


def test_what_is_no_run_is_refused_with_what_to_give(run: Path, tmp_path: Path):
    with pytest.raises(ParleyError, match=r"there is no run .*nowhere; give a run's directory"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ParleyError, match=r"it has no metrics.csv; give one of its runs: .*version_0.$"):
        read_run(tmp_path)
    (run / "predictions.csv").write_text("id,text\n1,a\n")
    with pytest.raises(ParleyError, match=r"predictions.csv, line 2: there is no prompt; restore the file"):
        read_run(run)
    (run / "predictions.csv").unlink()
    (run / "metrics.csv").write_text("epoch,step,val/loss\n0,one,1\n")
    with pytest.raises(ParleyError, match=r"metrics.csv, line 2: val/loss is no figure with a step"):
        read_run(run)
    (run / "metrics.csv").write_text("epoch,step,val/loss\n0,1,1\n")
    (run / "config.yaml").write_text("a: [1")
    with pytest.raises(ParleyError, match=r"config.yaml is not YAML to be used"):
        read_run(run)


@pytest.mark.parametrize("length", [1, 10, 11, 25, 1000])
def test_thinning_keeps_the_mean_and_both_ends(length: int):
    curve = [(step, float(step % 7)) for step in range(length)]
    thinned = thin(curve, most=10)
    assert len(thinned) == min(length, 10)
    assert thinned[-1][0] == curve[-1][0]
    assert [step for step, _ in thinned] == sorted({step for step, _ in thinned})
    if length % 10 == 0:
        mean = sum(value for _, value in curve) / length
        assert sum(value for _, value in thinned) / len(thinned) == pytest.approx(mean)
