"""Escapes control characters in texts of models, data and files before they reach a terminal."""

from __future__ import annotations

import re
import sys
from typing import TextIO

# C0 controls except tab and line feed; C1 controls; bidirectional marks; line separators; lone surrogates.
_ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Escape control characters: the escape character as `\x1b`, a right-to-left override as `\u202e`.

    Args:
        text: Any text; its tabs and line ends stay.
    """
    return _ORDERS.sub(_escaped, text.replace("\r\n", "\n"))


def on_one_line(text: str) -> str:
    """A text as `visible` returns it, with line ends escaped too."""
    return visible(text).replace("\n", "\\n")


def visible_on(stream: TextIO, text: str) -> str:
    """A text for a stream: escaped as by `visible` if the stream is a terminal, else unchanged."""
    return visible(text) if stream.isatty() else text


def visible_json(text: str) -> str:
    """The same JSON with control characters as JSON escapes."""
    return _ORDERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: str) -> None:
    """Write to standard output, with control characters escaped if that is a terminal."""
    sys.stdout.write(visible_on(sys.stdout, text))


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
