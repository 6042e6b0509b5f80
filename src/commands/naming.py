"""Several models on a command line, and what each is called."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

from src.errors import ParleyError


def add_named_models(parser: argparse.ArgumentParser, called: str) -> None:
    """The models by their places, and those with a name of their own.

    Args:
        parser: Of a command.
        called: What `--name` gives, for its help.
    """
    parser.add_argument("models", metavar="MODEL", nargs="*", help="checkpoints, directories or hub names")
    parser.add_argument("--name", dest="named", action="append", default=[], metavar="NAME=MODEL", help=called)


def named_models(models: Sequence[str], named: Sequence[str], reserved: Collection[str] = ()) -> dict[str, str]:
    """What each model is called, and where it is.

    Args:
        models: Those that are called by their places.
        named: The others, each `NAME=MODEL`.
        reserved: Names that are taken: the columns of the file that answers go to.

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
    """What an option that may be repeated names.

    Args:
        texts: Each `NAME=DIRECTORY`.
        option: The option, for what is said of a mistake.
        taken: Names that are something else's.

    Raises:
        ParleyError: One has no name or no directory, or a name that is taken.
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
    """Short names that tell models apart: the last part of a path where that does, all of it where not.

    Args:
        names: Paths and hub names.
        reserved: What none may be called.

    Raises:
        ParleyError: The same model twice.
    """
    if len(set(names)) < len(names):
        raise ParleyError("the same model is given twice; leave one of them out.")
    short = [Path(name).name or name for name in names]
    unique = len(set(short)) == len(short)
    return [
        f"model:{last}" if last in reserved else last if unique else name
        for last, name in zip(short, names, strict=True)
    ]
