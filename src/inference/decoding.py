"""Decoding presets, and changes to single decoding options."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from src.errors import ParleyError
from src.models.generation_options import GenerationOptions, ModelOptions
from src.models.responses import Model
from src.yaml_files import read_yaml

# The presets of the published notebook's tour of decoding, in its order; others follow by name.
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
OWN = "model"  # the preset that stands for the model's own settings and has no file
KEPT = ("max_new_tokens", "min_new_tokens", "bad_words", "stop_strings", "seed")  # kept unless a preset sets them
SAMPLING = ("temperature", "top_k", "top_p")


def presets_directory() -> Path:
    """The directory of the named presets: `configs/decoding` of the repository."""
    return Path(__file__).resolve().parents[2] / "configs" / "decoding"


def preset_names() -> list[str]:
    """The named presets, those of the published tour first, in its order.

    Raises:
        ParleyError: The directory has no presets, as outside a clone of the repository.
    """
    found = sorted(file.stem for file in presets_directory().glob("*.yaml"))
    if not found:
        raise ParleyError(
            f"there are no presets at {presets_directory()}; run from a clone of the repository, or give a file."
        )
    return [name for name in TOUR if name in found] + [name for name in found if name not in TOUR]


def read_preset(name_or_path: str) -> dict[str, Any]:
    """The options in a preset's YAML file.

    Args:
        name_or_path: The name of a file in `configs/decoding`, or a path to another.

    Raises:
        ParleyError: There is no such preset, or it holds anything but decoding options.
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
        ParleyError: There is no such option, or its value has the wrong type; the message says what is allowed.
    """
    hints = get_type_hints(GenerationOptions)
    if name not in hints:
        raise ParleyError(f"{place}there is no decoding option {name!r}; there are: {', '.join(hints)}.")
    if get_origin(hints[name]) is Literal:
        if value not in get_args(hints[name]):
            raise ParleyError(f"{place}{name} is {value!r}; it must be {' or '.join(get_args(hints[name]))}.")
        return
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
    """Parse an option's value from text that a user typed; items of a list are separated by commas.

    Raises:
        ParleyError: There is no such option, or the text is not a value of it.
    """
    if get_type_hints(GenerationOptions).get(name) == list[str]:
        return [item for item in (item.strip() for item in text.split(",")) if item]
    value = _value(text)
    check_option(name, value)
    return value


def _value(text: str) -> Any:
    """A text as a number, boolean or None if it is one of these; otherwise the text."""
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def with_preset(options: GenerationOptions, name_or_path: str, model: Model | None = None) -> GenerationOptions:
    """Apply a preset; lengths, banned words, stop strings and seed are kept unless the preset sets them.

    Args:
        options: The current options.
        name_or_path: A named preset, a file, or `model` for the model's own settings, lengths included.
        model: The model whose settings `model` stands for; if None, `model` leaves the options unchanged.
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
    """Change some options; temperature, top_k or top_p without do_sample switch sampling on.

    Raises:
        ParleyError: The resulting options contradict each other.
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
