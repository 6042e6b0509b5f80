"""The snippets of docs/rewards.md, run as they stand."""

import re
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from src.rewards import ClassifierReward, ProfanityReward, Reward, WeightedSum, score_responses

PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def from_yaml(text):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=Reward)
    return parser.instantiate_classes(parser.parse_string(text)).reward


def test_a_reward_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "polite_reward.py").write_text(blocks("python")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    reward = from_yaml(blocks("yaml")[2])
    scores = score_responses(reward, ["Help me.", "Help me."], ["Thank you, I will.", "No."])
    assert scores.tolist() == [2.0, 0.0]


def test_it_takes_ten_lines():
    code = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(code) <= 10


def test_the_built_in_ones_go_by_their_short_names():
    published, combined = (from_yaml(text) for text in blocks("yaml")[:2])
    assert isinstance(published, ClassifierReward)
    assert vars(published) == vars(ClassifierReward())
    assert isinstance(combined, WeightedSum)
    assert isinstance(combined.rewards[0], ProfanityReward)


def test_toxicity_before_and_after():
    pytest.importorskip("profanity_check")
    names: dict = {}
    exec(blocks("python")[1], names)
    assert re.fullmatch(r"[\d.]+ % less toxic, 95 % interval [\d.]+ to [\d.]+", names["summary"])
