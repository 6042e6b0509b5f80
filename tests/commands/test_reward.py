"""`parley reward` as a user runs it."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

from src.cli import main
from src.rewards import LengthReward, ProfanityReward, RougeReward

LENGTH = "{class_path: LengthReward, init_args: {target: 3}}"
TEXTS = ["You fool", "Good morning to all of you", ""]


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["reward", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "answers.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "before", "after", "right"])
        writer.writerows([[f"q{n}", "a b c d e f " * (n + 1), "a b c " + "d " * n, "a b c"] for n in range(8)])
        writer.writerow(["q8", "", "a", "a"])
    return path


def test_texts_get_the_reward_that_the_class_gives(capsys: pytest.CaptureFixture[str]) -> None:
    rows = asked(capsys, LENGTH, *TEXTS)["answers"]["rows"]
    assert [row["reward"] for row in rows] == LengthReward(target=3)(["", "", ""], TEXTS).tolist()
    assert {row["toxicity"] for row in rows} == {None}


def test_toxicity_is_measured_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("profanity_check")
    rows = asked(capsys, "ProfanityReward", *TEXTS, "--toxicity")["answers"]["rows"]
    expected = ProfanityReward()(["", "", ""], TEXTS)
    assert [row["reward"] for row in rows] == pytest.approx(expected.tolist())
    assert [row["toxicity"] for row in rows] == pytest.approx((1 - expected).tolist(), abs=1e-6)


def test_every_label_of_a_classifier_is_what_a_pipeline_says(
    make_classifier: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = make_classifier(["nothate", "hate"])
    texts = TEXTS[:2]
    reward = json.dumps({"class_path": "ClassifierReward", "init_args": {
        "model_name_or_path": name, "label": "nothate", "text": "response"}})  # fmt: skip
    rows = asked(capsys, reward, *texts)["answers"]["rows"]
    theirs = pipeline("text-classification", model=name, device="cpu")(texts, top_k=None, function_to_apply="none")
    shares = pipeline("text-classification", model=name, device="cpu")(texts, top_k=None)
    for row, logits, probabilities in zip(rows, theirs, shares, strict=True):
        assert {label: pair[0] for label, pair in row["labels"].items()} == pytest.approx(
            {one["label"]: one["score"] for one in logits}, abs=1e-5
        )
        assert {label: pair[1] for label, pair in row["labels"].items()} == pytest.approx(
            {one["label"]: one["score"] for one in probabilities}, abs=1e-5
        )
        assert row["reward"] == pytest.approx(row["labels"]["nothate"][0])
    bare = asked(capsys, name, "--prompt", "p", *texts)["answers"]["rows"]
    assert [row["reward"] for row in bare] == [None, None], "nobody said which label"
    assert set(bare[0]["labels"]) == set(rows[0]["labels"])


def test_two_columns_are_compared_by_mean_and_spread(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--input", str(table), "--column", "before", "--column", "after", "--prompt-column", "query"]
    found = asked(capsys, LENGTH, *words)
    reward = LengthReward(target=3)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = {name: reward([""] * 9, [row[name] for row in rows]).tolist() for name in ("before", "after")}
    for name, figures in scores.items():
        summary = found[name]["summary"]
        assert summary["reward_mean"] == pytest.approx(statistics.fmean(figures))
        assert summary["reward_std"] == pytest.approx(statistics.pstdev(figures))
    [mean, std] = found["changes"]
    for change, measure in ((mean, statistics.fmean), (std, statistics.pstdev)):
        before, after = measure(scores["before"]), measure(scores["after"])
        expected = None if before == 0 else pytest.approx(100 * (before - after) / before)
        assert change["falls by %"] == expected
    assert main(["reward", LENGTH, *words, "--show", "2"]) == 0
    shown = capsys.readouterr().out
    assert "From the first column to the second (low to high: 95 % interval):" in shown
    assert "reward, standard deviation" in shown


def test_right_answers_reach_a_reward_that_needs_them(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--input", str(table), "--column", "after", "--reference-column", "right"]
    rows = asked(capsys, "RougeReward", *words)["after"]["rows"]
    expected = RougeReward()([""] * 9, [row["text"] for row in rows], [["a b c"]] * 8 + [["a"]])
    torch.testing.assert_close(torch.tensor([row["reward"] for row in rows]), expected)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([LENGTH], "give texts, or a table"),
        ([LENGTH, "a", "--column", "x"], "are for --input"),
        ([LENGTH, "--input", "nowhere.csv"], "name one --column"),
        ([LENGTH, "--input", "nowhere.csv", "--column", "x"], "nowhere.csv"),
        (["RougeReward", "a"], "references"),
        (["Nothing", "a"], "there is no reward 'Nothing'"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reward", *words]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
