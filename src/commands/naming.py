"""Names for the models given on a command line."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

from src.errors import ParleyError


def add_named_models(parser: argparse.ArgumentParser, called: str) -> None:
    """Add `MODEL...` and the repeatable `--name NAME=MODEL`.

    Args:
        parser: The command's parser.
        called: The help text of `--name`.
    """
    parser.add_argument("models", metavar="MODEL", nargs="*", help="checkpoints, directories or hub names")
    parser.add_argument("--name", dest="named", action="append", default=[], metavar="NAME=MODEL", help=called)


def named_models(models: Sequence[str], named: Sequence[str], reserved: Collection[str] = ()) -> dict[str, str]:
    """A name for each model, mapped to its path or hub name.

    Args:
        models: Models named after their paths (see `labels`).
        named: Models with a given name, each `NAME=MODEL`.
        reserved: Names that are taken by columns of the answers' file.

    Raises:
        ParleyError: A name is missing or taken, or the same model is given twice.
    """
    found = dict(zip(labels(models, reserved), models, strict=True))
    own = by_name(named, "--name", found)
    if twice := [model for model in own.values() if [*models, *own.values()].count(model) > 1]:
        raise ParleyError(f"{twice[0]} is given twice; leave one of them out.")
    if columns := [name for name in own if name in reserved]:
        raise ParleyError(f"the name {columns[0]!r} is a column of the answers' file; choose another.")
    return found | own


def by_name(texts: Sequence[str], option: str, taken: Collection[str] = ()) -> dict[str, str]:
    """Parse the values of a repeatable `NAME=DIRECTORY` option, as a dictionary.

    Args:
        texts: Each `NAME=DIRECTORY`.
        option: The option, for error messages.
        taken: Names that are in use already.

    Raises:
        ParleyError: A value has no name or no directory, or its name is taken.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, model = text.partition("=")
        if not (name and model):
            raise ParleyError(f"{option} is {text!r}; write a name and a model, such as {option} peft=models/adapter.")
        if name in taken or name in found:
            raise ParleyError(f"{option}: the name {name!r} is taken or given twice; choose another.")
        found[name] = model
    return found


def labels(names: Sequence[str], reserved: Collection[str] = ()) -> list[str]:
    """Short names for models: the last parts of their paths where these differ, else the whole paths.

    Args:
        names: Paths and hub names.
        reserved: Names that may not be used; a model of that name gets the prefix `model:`.

    Raises:
        ParleyError: The same model is given twice.
    """
    if len(set(names)) < len(names):
        raise ParleyError("the same model is given twice; leave one of them out.")
    short = [Path(name).name or name for name in names]
    unique = len(set(short)) == len(short)
    return [
        f"model:{last}" if last in reserved else last if unique else name
        for last, name in zip(short, names, strict=True)
    ]
