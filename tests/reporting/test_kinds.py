"""Which figures of one name mean the same."""

from __future__ import annotations

from typing import Any

import pytest

from src.reporting.kinds import baselines, by_kind, told_apart
from src.reporting.runs import Run

SFT = {"model.class_path": "src.modules.Seq2SeqModule", "data.init_args.path": "sample"}
DPO = {"model.class_path": "src.modules.DPOModule", "model.init_args.dpo.beta": 0.1, "data.init_args.path": "sample"}


def run(settings: dict[str, Any], *metrics: str) -> Run:
    return Run("", settings, {name: [(0, 1.0)] for name in metrics}, (), (), ())


@pytest.mark.parametrize(
    ("metric", "other", "alike"),
    [
        ("train/loss", SFT, True),
        ("train/loss", DPO, False),
        ("val/perplexity", DPO, False),
        ("test/rouge1", DPO, True),
        ("train/loss", {**SFT, "model.init_args.label_smoothing": 0.1}, False),
        ("train/loss", {**SFT, "model.init_args.optimizer.init_args.lr": 0.1}, True),
        ("train/loss", {**SFT, "data.init_args.path": "other"}, True),
        ("val/loss", {**SFT, "data.init_args.path": "other"}, False),
        ("val/rouge1", {**SFT, "data.init_args.validation_split": "train[90%:]"}, False),
        ("test/rouge1", {**SFT, "data.init_args.validation_split": "train[90%:]"}, True),
        ("test/rouge1", {**SFT, "trainer.limit_test_batches": 2}, False),
        ("env/reward_mean", {**SFT, "model.init_args.reward.class_path": "src.rewards.RougeReward"}, False),
        ("objective/kl", {**SFT, "model.init_args.reward.class_path": "src.rewards.RougeReward"}, True),
        ("rewards/accuracies", DPO, True),
        ("rewards/margins", {**DPO, "model.init_args.dpo.beta": 0.5}, False),
    ],
)
def test_alike(metric: str, other: dict[str, Any], alike: bool):
    assert (len(by_kind([run(SFT, metric), run(other, metric)], metric)) == 1) is alike


def test_a_figure_is_compared_with_the_first_of_its_kind():
    runs = [run(SFT, "train/loss"), run(DPO), run(DPO, "train/loss"), run(SFT, "train/loss"), run(DPO, "train/loss")]
    assert baselines(runs, "train/loss") == {0: 0, 3: 0, 2: 2, 4: 2}


def test_kinds_are_told_by_what_they_do_not_share():
    assert told_apart(list(by_kind([run(SFT, "train/loss"), run(DPO, "train/loss")], "train/loss"))) == [
        "Seq2SeqModule",
        "DPOModule",
    ]
    other = DPO | {"model.init_args.dpo.beta": 0.5}
    assert told_apart(list(by_kind([run(DPO, "train/loss"), run(other, "train/loss")], "train/loss"))) == [
        "beta 0.1",
        "beta 0.5",
    ]
    assert told_apart(list(by_kind([run(SFT, "train/loss")], "train/loss"))) == [""]
