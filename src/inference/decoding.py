"""Decoding presets, and changing one option of many."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from src.errors import ParleyError
from src.models.generation import GenerationOptions, ModelOptions
from src.models.responses import Model
from src.yaml_files import read_yaml

# In the order of the published tour; others follow by name.
TOUR = (
    "greedy",
    "beams-5",
    "beams-5-no-repeat",
    "beams-5-all",
    "sampling",
    "temperature",
    "top-k",
    "top-p",
    "top-k-top-p",
)
OWN = "model"  # the preset that is no file
KEPT = ("max_new_tokens", "min_new_tokens", "bad_words", "stop_strings", "seed")  # what a preset need not speak of
SAMPLING = ("temperature", "top_k", "top_p")


def presets_directory() -> Path:
    """Where the named presets are: `configs/decoding` of the repository."""
    return Path(__file__).resolve().parents[2] / "configs" / "decoding"


def preset_names() -> list[str]:
    """The named presets, those of the published tour first, in its order.

    Raises:
        ParleyError: This is not a clone of the repository.
    """
    found = sorted(file.stem for file in presets_directory().glob("*.yaml"))
    if not found:
        raise ParleyError(
            f"there are no presets at {presets_directory()}; run from a clone of the repository, or give a file."
        )
    return [name for name in TOUR if name in found] + [name for name in found if name not in TOUR]


def read_preset(name_or_path: str) -> dict[str, Any]:
    """A preset's options as its YAML file has them.

    Args:
        name_or_path: The name of a file in `configs/decoding`, or a path to another.

    Raises:
        ParleyError: There is none, or it holds something else than decoding options.
    """
    named = presets_directory() / f"{name_or_path}.yaml"
    file = named if re.fullmatch(r"[\w-]+", name_or_path) and named.is_file() else Path(name_or_path).expanduser()
    if not file.is_file():
        raise ParleyError(
            f"there is no preset {name_or_path!r}; name one of {', '.join([*preset_names(), OWN])}, or a file."
        )
    options = read_yaml(file) or {}
    if not isinstance(options, dict):
        raise ParleyError(f"{file} holds {type(options).__name__}, not options; write `name: value` lines.")
    for name, value in options.items():
        check_option(str(name), value, f"{file}: ")
    return options


def check_option(name: str, value: Any, place: str = "") -> None:
    """Refuse an option that does not exist, or a value of another type.

    Raises:
        ParleyError: Says which, and what there is instead.
    """
    hints = get_type_hints(GenerationOptions)
    if name not in hints:
        raise ParleyError(f"{place}there is no decoding option {name!r}; there are: {', '.join(hints)}.")
    kinds = get_args(hints[name]) if type(None) in get_args(hints[name]) else (hints[name],)
    if list[str] in kinds:
        right = isinstance(value, list) and all(isinstance(item, str) for item in value)
    elif isinstance(value, bool):
        right = bool in kinds
    else:
        right = isinstance(value, (*kinds, int) if float in kinds else kinds)
    if not right:
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}.get(kinds[0], "a list of texts")
        raise ParleyError(f"{place}{name} is {value!r}; it must be {wanted}.")


def parse_option(name: str, text: str) -> Any:
    """An option's value from text as a user types it; texts of a list are separated by commas.

    Raises:
        ParleyError: There is no such option, or the text is not a value of it.
    """
    if get_type_hints(GenerationOptions).get(name) == list[str]:
        return [item for item in (item.strip() for item in text.split(",")) if item]
    value = _value(text)
    check_option(name, value)
    return value


def _value(text: str) -> Any:
    """The number or the word of YAML that a text is; otherwise the text."""
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def with_preset(options: GenerationOptions, name_or_path: str, model: Model | None = None) -> GenerationOptions:
    """Decode as a preset says; lengths, bans, stops and seed stay as they are unless it speaks of them.

    Args:
        options: As they are.
        name_or_path: A named preset, a file, or `model` for the model's own settings, its lengths among them.
        model: Whose settings `model` means; before it is loaded the options stay as they are.
    """
    if name_or_path == OWN:
        return (
            options
            if model is None
            else replace(ModelOptions.of(model), bad_words=options.bad_words, seed=options.seed)
        )
    kept = {name: getattr(options, name) for name in KEPT}
    return GenerationOptions(**{**kept, **read_preset(name_or_path)})


def with_changes(options: GenerationOptions, changes: Mapping[str, Any]) -> GenerationOptions:
    """Change some options; temperature, top_k or top_p without a word on do_sample switch sampling on.

    Raises:
        ParleyError: The result contradicts itself.
    """
    changes = dict(changes)
    if "do_sample" not in changes and any(name in changes for name in SAMPLING):
        changes["do_sample"] = True
    return replace(options, **changes)


def describe(options: GenerationOptions) -> str:
    """The options that differ from their defaults, in one line."""
    defaults = GenerationOptions()
    names = [item.name for item in fields(GenerationOptions)]
    said = {name: getattr(options, name) for name in names if getattr(options, name) != getattr(defaults, name)}
    if isinstance(options, ModelOptions):
        said |= options.further
    return ", ".join(f"{name} {value}" for name, value in said.items()) or "greedy"
