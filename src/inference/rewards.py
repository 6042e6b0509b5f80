"""Rewards on the command line: how to name one, and scores of texts by it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import src.rewards
from src.contracts import Example
from src.errors import ParleyError
from src.metrics.improvement import Change, percent_improvement
from src.metrics.measurement import ToxicityMeasurement
from src.rewards import ClassifierReward, Reward, score_responses
from src.yaml_files import read_yaml

__all__ = ["Measured", "MeasuredText", "Reward", "Rewarder", "changes", "read_reward"]


def read_reward(text: str) -> Reward:
    """Instantiate the reward that is named on the command line.

    Args:
        text: A reward's class, YAML of one, a configuration file with a reward in it, or a classifier.

    Raises:
        ParleyError: There is no such reward.
        argparse.ArgumentError: Its settings are wrong.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=Reward)
    return parser.instantiate_classes(parser.parse_object({"reward": _named(text)})).reward


def _named(text: str) -> dict[str, Any]:
    if text in src.rewards.__all__ and isinstance(getattr(src.rewards, text), type):
        return {"class_path": f"src.rewards.{text}"}
    if text.endswith((".yaml", ".yml")):
        return _in_settings(Path(text))
    if "class_path" in text:
        try:
            given = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ParleyError(
                f"--reward {text!r} is not YAML; write {{class_path: ..., init_args: {{...}}}}."
            ) from error
        if isinstance(given, dict):
            return given
    if Path(text).expanduser().is_dir() or (text.count("/") == 1 and not Path(text).exists()):
        return {"class_path": "src.rewards.ClassifierReward", "init_args": {"model_name_or_path": text, "label": None}}
    if "." in text:
        return {"class_path": text}
    known = ", ".join(name for name in src.rewards.__all__ if name.endswith(("Reward", "Sum")) and name != "Reward")
    raise ParleyError(f"there is no reward {text!r}; name {known}, a class of your own, a YAML file or a classifier.")


def _in_settings(path: Path) -> dict[str, Any]:
    """The reward's settings in a recipe, or in a file that holds nothing else."""
    settings = read_yaml(path)
    for keys in (("model", "init_args", "reward"), ("reward",), ()):
        found: Any = settings
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, dict) and "class_path" in found:
            return found
    raise ParleyError(f"{path} has no reward in it; write `reward:` with class_path and init_args, or name a recipe.")


@dataclass(frozen=True)
class MeasuredText:
    """The scores of one answer.

    Attributes:
        id: The row's name.
        prompt: The prompt that it answers.
        text: The answer.
        reward: The reward's score; None for a classifier with several labels of which none is chosen.
        labels: For a classifier, every label's logit and probability.
        toxicity: From 0 to 1; None if it is not measured.
    """

    id: str
    prompt: str
    text: str
    reward: float | None
    labels: dict[str, tuple[float, float]]
    toxicity: float | None


@dataclass(frozen=True)
class Measured:
    """The scores of several answers."""

    rows: list[MeasuredText]

    def figures(self, name: str) -> list[float]:
        """The `reward` or `toxicity` of each answer; empty if any has none."""
        found = [getattr(row, name) for row in self.rows]
        return [] if None in found else found

    @property
    def summary(self) -> dict[str, float]:
        """The number of answers, and mean and population standard deviation of reward and toxicity."""
        summary: dict[str, float] = {"number": len(self.rows)}
        for name in ("reward", "toxicity"):
            if figures := self.figures(name):
                summary |= {f"{name}_mean": statistics.fmean(figures), f"{name}_std": statistics.pstdev(figures)}
        return summary


class Rewarder:
    """Scores answers by a reward.

    Args:
        reward: The reward.
        toxicity: Measure toxicity too.
        by: The directory of the toxicity classifier; alt-profanity-check when left out.
    """

    def __init__(self, reward: Reward, *, toxicity: bool = False, by: str | None = None) -> None:
        self.reward = reward
        self.toxicity = ToxicityMeasurement(by, text="response") if toxicity else None

    def measure(self, examples: Sequence[Example]) -> Measured:
        """Score each example's target.

        Raises:
            ParleyError: The reward needs references that are not there, or fails.
        """
        prompts, texts = [item.prompt for item in examples], [item.target for item in examples]
        labels: list[dict[str, tuple[float, float]]] = [{} for _ in texts]
        rewards: list[float | None] = [None] * len(texts)
        if isinstance(self.reward, ClassifierReward):
            labels = self.reward.labels(prompts, texts)
        if not labels or self._is_settled(labels[0]):
            references = [item.references for item in examples]
            given = references if all(references) else None
            rewards = list(score_responses(self.reward, prompts, texts, given).tolist())
        toxicity: list[float | None] = [None] * len(texts)
        if self.toxicity is not None:
            toxicity = list(self.toxicity.scores(texts))
        return Measured(
            [
                MeasuredText(item.id, item.prompt, item.target, score, each, toxic)
                for item, score, each, toxic in zip(examples, rewards, labels, toxicity, strict=True)
            ]
        )

    def _is_settled(self, labels: dict[str, tuple[float, float]]) -> bool:
        """Whether it is determined which label of a classifier is the reward."""
        return getattr(self.reward, "label", None) is not None or len(labels) < 2


def changes(before: Measured, after: Measured) -> dict[str, Change]:
    """By how many per cent mean and standard deviation of reward and toxicity fell from `before` to `after`."""
    found: dict[str, Change] = {}
    for name in ("reward", "toxicity"):
        pair = before.figures(name), after.figures(name)
        if all(pair):
            improvement = percent_improvement(*pair)
            found |= {f"{name}, mean": improvement.mean, f"{name}, standard deviation": improvement.std}
    return found
