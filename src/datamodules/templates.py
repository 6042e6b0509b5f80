"""Prompt templates: named ones from `templates.yaml`, or any text with a `{field}` in it."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from importlib import resources

import yaml

from src.errors import ParleyError
from src.files import refuse_surrogates


def named_templates() -> dict[str, str]:
    """The bundled templates by name; their texts are exactly those published."""
    text = resources.files("src.datamodules").joinpath("templates.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def resolve_template(template: str, fields: set[str]) -> str:
    r"""Find a template by its name, or check a given text.

    Args:
        template: The name of a bundled template, or a text with at least one `{field}`. In such a text `\n` is a line
            end, which is hard to type on a command line, and `\\` a backslash.
        fields: The fields that the dataset's rows have.

    Returns:
        The template's text.

    Raises:
        ParleyError: The name is unknown, or the text asks for a field that the rows lack.
    """
    templates = named_templates()
    refuse_surrogates(template, "the template")
    text = templates[template] if template in templates else unescaped(template)
    try:
        parts = [part for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise ParleyError(
            f"template {template!r} is malformed ({error}); write {{{{ and }}}} for plain braces."
        ) from error
    asked = {str(name) for _, name, _, _ in parts}
    if odd := [name for _, name, spec, conversion in parts if spec or conversion or not str(name).isidentifier()]:
        raise ParleyError(
            f"template {template!r} has more than a field's name between braces at {odd[0]!r}; write {{field}}, and "
            "{{ and }} for plain braces."
        )
    if not asked:
        names = ", ".join(sorted(templates))
        raise ParleyError(f"unknown template {template!r}; name one of {names}, or write a text with {{field}} in it.")
    if unknown := asked - fields:
        missing, known = ", ".join(sorted(unknown)), ", ".join(f"{{{field}}}" for field in sorted(fields))
        raise ParleyError(f"template {template!r} asks for {missing!r}, which this dataset lacks; it has {known}.")
    return text


def unescaped(text: str) -> str:
    r"""Unescape a text from the command line: `\n` becomes a line end and `\\` a backslash."""
    return re.sub(r"\\([n\\])", lambda match: "\n" if match[1] == "n" else "\\", text)


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Fill a resolved template from a row's fields."""
    return template.format(**fields)
