"""Reading of YAML without duplicate keys, self-references or excessive expansion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from src.errors import ParleyError
from src.files import read_text

DEEPEST = 100  # levels; YAML parsers recurse once per level
MOST_VALUES = 100_000  # after all aliases are expanded


class UnreasonableYAMLError(yaml.constructor.ConstructorError):
    """YAML that is well-formed but refused by `check_yaml`."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(None, None, problem, mark)


@dataclass
class _Node:
    """A list or mapping that is not closed yet.

    Attributes:
        anchor: Its YAML anchor, if any.
        size: The number of values in it so far.
        keys: A mapping's keys so far; None for a list.
        awaits_key: For a mapping, whether a key comes next.
    """

    anchor: str | None
    size: int = 1
    keys: set[str] | None = None
    awaits_key: bool = field(default=True)


def check_yaml(text: str) -> None:
    """Refuse YAML that would be misread, or would exhaust time or memory.

    Raises:
        UnreasonableYAMLError: It has a key twice in one mapping, is too deep, refers to itself or expands to
            too many values.
        yaml.YAMLError: It is not YAML.
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
    """Add a value to the node that contains it, and refuse a duplicate key."""
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
    """The content of a YAML file.

    Raises:
        ParleyError: It cannot be read, is not YAML, or is refused by `check_yaml` (with the line).
    """
    text = read_text(path)
    try:
        check_yaml(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date with a month 13, a number of 5,000 digits
        raise ParleyError(f"{path} is not YAML to be used ({' '.join(str(error).split())[:200]}); mend it.") from error
