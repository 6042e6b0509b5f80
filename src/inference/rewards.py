"""A reward as it is named on a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

import src.rewards
from src.errors import ParleyError
from src.rewards import Reward
from src.yaml_files import read_yaml

__all__ = ["Reward", "read_reward"]


def read_reward(text: str) -> Reward:
    """Make the reward that a command line names.

    Args:
        text: A reward's class, YAML of one, a file of settings with a reward in it, or a classifier.

    Raises:
        ParleyError: It names none.
        argparse.ArgumentError: Its settings are not right.
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
        return {"class_path": "src.rewards.ClassifierReward", "init_args": {"model_name_or_path": text}}
    if "." in text:
        return {"class_path": text}
    known = ", ".join(name for name in src.rewards.__all__ if name.endswith(("Reward", "Sum")) and name != "Reward")
    raise ParleyError(f"there is no reward {text!r}; name {known}, a class of your own, a YAML file or a classifier.")


def _in_settings(path: Path) -> dict[str, Any]:
    """The reward of a recipe, or of a file that has nothing else."""
    settings = read_yaml(path)
    for keys in (("model", "init_args", "reward"), ("reward",), ()):
        found: Any = settings
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, dict) and "class_path" in found:
            return found
    raise ParleyError(f"{path} has no reward in it; write `reward:` with class_path and init_args, or name a recipe.")
