"""What the page about runs shows, and that nothing in a run's texts can run in it."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from src.reporting.figures import headlines, phase_seconds
from src.reporting.page import render
from src.reporting.plots import Series, curves, frontier, histogram
from src.reporting.runs import read_run

EVIL = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>' onload='x"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What PPO's test leaves behind, with hostile texts."""
    directory = tmp_path / "version_0"
    directory.mkdir()
    rows = [
        {"step": step, "env/reward_mean": reward, "objective/kl": kl, "time/rollout": 2.0, "time/reward": step}
        for step, (reward, kl) in enumerate([(0.1, 0.0), (0.1, 0.0), (0.5, 0.2), (0.4, 0.3), (0.9, 1.0)])
    ]
    rows[0][EVIL] = 0.5
    rows.append(
        {
            "step": 5,
            "test/toxicity_improvement": 64.5,
            "test/toxicity_improvement_low": 50.0,
            "test/toxicity_improvement_high": 73.25,
            "test/rouge1": 0.75,
            "test/rouge1_reference": 0.766,
            EVIL: 1.0,
        }
    )
    with (directory / "metrics.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    with (directory / "before_after.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        columns = "query response_before response_after reward_before reward_after reward_diff"
        writer.writerow([*columns.split(), "toxicity_before", "toxicity_after"])
        for number in range(12):
            writer.writerow([f"{EVIL} {number}", EVIL, EVIL, -number, number / 2, 1.5 * number, 0.5, number / 12])
    (directory / "config.yaml").write_text(f"seed_everything: {json.dumps(EVIL)}\n")
    return directory


def test_the_first_figures_are_those_of_the_test(run: Path):
    found = [(each.label, each.value, each.note) for each in headlines(read_run(run))]
    assert found == [
        ("fall of toxicity", "64.5 %", "95 % interval 50.0 to 73.2"),
        ("ROUGE-1", "0.75", "0.766 before"),
    ]


def test_phases_are_means_of_an_iteration(run: Path):
    assert phase_seconds(read_run(run)) == {"rollout": 2.0, "reward": 2.0}


@pytest.mark.parametrize("seed", range(20))
def test_nothing_lies_above_the_frontier(seed: int):
    draw = random.Random(seed)
    points = [(draw.randint(0, 6) / 2, draw.randint(0, 6) / 2) for _ in range(draw.randint(1, 12))]
    best = {
        (paid, had)
        for paid, had in points
        if not any((a <= paid and b > had) or (a < paid and b >= had) for a, b in points)
    }
    edge = frontier(points)
    assert set(edge) == best
    assert edge == sorted(edge)


def test_every_answer_is_in_the_histogram_once():
    before, after = [0.0, 0.1, 0.1, 1.0], [0.9, 1.0, 1.0, 0.5, 0.0]
    marks = histogram(before, after, "reward", bins=5).marks
    counted = [(mark.series, re.match(r"(\d+) from", mark.text)[1]) for mark in marks]
    assert [int(count) for time, count in counted if time == "before"] == [3, 0, 0, 0, 1]
    assert [int(count) for time, count in counted if time == "after"] == [1, 0, 1, 0, 3]
    assert histogram([2.0], [2.0], "all alike").marks


def test_a_curve_is_read_off_where_it_is_drawn():
    picture = curves({Series("fit", 0): [(0, 1.0), (10, 3.0), (20, 2.0)]}, "loss")
    drawn = re.findall(r'<use xlink:href="#m\w+" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--run-0\)', picture.svg)
    assert len(drawn) == 3
    for mark, (x, y) in zip(picture.marks, drawn, strict=True):
        assert (mark.x, mark.y) == pytest.approx((float(x), float(y)), abs=0.1)
    assert {mark.series for mark in picture.marks} == {"fit"}
    assert [mark.text for mark in picture.marks] == ["step 0: 1", "step 10: 3", "step 20: 2"]


def test_the_page_allows_its_own_script_and_no_other(run: Path):
    page = render([read_run(run)], 20)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert html.unescape(policy[1]).split("; ") == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]
    assert "<img" not in page
    assert page.count("data-row") >= 12 + 8


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_a_browser_runs_the_script_and_none_of_the_texts(run: Path, tmp_path: Path):
    file = tmp_path / "report.html"
    file.write_text(render([read_run(run)], 20))
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    ended = subprocess.run(
        [*words, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "broken" not in re.search(r"<title>(.*?)</title>", ended.stdout)[1]
    fields = re.findall(r"<input[^>]*>", ended.stdout)
    assert len(fields) == 3
    assert not any("hidden" in field for field in fields)  # the script shows them
    assert ended.stdout.count("<button>") == 2 + 4 * 2  # reward, toxicity; metric and run of four tables


def test_pairs_of_a_reward_model_are_shown(tmp_path: Path):
    directory = tmp_path / "reward"
    (directory / "samples").mkdir(parents=True)
    (directory / "metrics.csv").write_text("epoch,step,val/loss,val/accuracy\n0,1,0.5,0.75\n")
    pair = {"index": 0, "id": "a", "prompt": "Why?", "chosen": "So.", "rejected": "No.", "chosen_reward": 1.5}
    (directory / "samples" / "step-1.jsonl").write_text(json.dumps(pair | {"rejected_reward": -0.5}) + "\n")
    [found] = read_run(directory).pairs
    assert (found.chosen, found.rejected, found.chosen_reward, found.rejected_reward) == ("So.", "No.", 1.5, -0.5)
    page = render([read_run(directory)], 5)
    assert "Pairs: " in page
    assert 'data-value="2.0"' in page
