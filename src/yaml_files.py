"""YAML that says one thing: no key twice, no loops, nothing that expands beyond reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from src.errors import ParleyError
from src.files import read_text

DEEPEST = 100  # levels; readers of YAML call themselves once a level
MOST_VALUES = 100_000  # once all references are followed


class UnreasonableYAMLError(yaml.constructor.ConstructorError):
    """YAML that can be read, and should not be."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(None, None, problem, mark)


@dataclass
class _Node:
    """A list or mapping that has begun.

    Attributes:
        anchor: What references call it.
        size: Values in it so far.
        keys: Of a mapping, those so far; None for a list.
        awaits_key: Of a mapping, whether a key comes next.
    """

    anchor: str | None
    size: int = 1
    keys: set[str] | None = None
    awaits_key: bool = field(default=True)


def check_yaml(text: str) -> None:
    """Refuse what would be read wrongly, or for ever.

    Raises:
        UnreasonableYAMLError: A key is there twice in a mapping, or it is too deep, refers to itself or expands to
            too many values.
        yaml.YAMLError: It is no YAML.
    """
    sizes: dict[str, int] = {}
    open_nodes: list[_Node] = [_Node(None, keys=None)]
    for event in _events(text):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            _count(open_nodes[-1], 0, event)
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            open_nodes.append(_Node(event.anchor, keys=set() if is_mapping else None))
            if len(open_nodes) > DEEPEST:
                raise UnreasonableYAMLError(f"it is more than {DEEPEST} levels deep", event.start_mark)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            done = open_nodes.pop()
            if done.anchor is not None:
                sizes[done.anchor] = done.size
            open_nodes[-1].size += done.size
        elif isinstance(event, yaml.AliasEvent):
            if any(node.anchor == event.anchor for node in open_nodes):
                raise UnreasonableYAMLError(f"*{event.anchor} is inside itself", event.start_mark)
            _count(open_nodes[-1], sizes.get(event.anchor or "", 1), event)
        elif isinstance(event, yaml.ScalarEvent):
            _count(open_nodes[-1], 1, event)
        if open_nodes[-1].size > MOST_VALUES:
            raise UnreasonableYAMLError(f"it expands to more than {MOST_VALUES:,} values", event.start_mark)


def _count(node: _Node, size: int, event: Any) -> None:
    """Take a value into the node that it is in, and see that no key comes twice."""
    node.size += size
    if node.keys is None:
        return
    if node.awaits_key and isinstance(event, yaml.ScalarEvent):
        if event.value in node.keys and event.value != "<<":
            raise UnreasonableYAMLError(f"{event.value!r} is there twice", event.start_mark)
        node.keys.add(event.value)
    node.awaits_key = not node.awaits_key


def _events(text: str) -> Iterator[Any]:
    return yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ParleyError: It cannot be read, is no YAML, or is unreasonable (with the line).
    """
    text = read_text(path)
    try:
        check_yaml(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date with a month 13, a number of 5,000 digits
        raise ParleyError(f"{path} is not YAML to be used ({' '.join(str(error).split())[:200]}); mend it.") from error
