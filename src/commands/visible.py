"""Texts of models, data and files on a terminal, where some characters are orders and not text."""

from __future__ import annotations

import re
import sys
from typing import TextIO

# Controls but for tab and line end; C1; marks that turn the direction of writing; line separators; half characters.
_ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Show what a terminal would obey: the escape character as `\x1b`, a right-to-left override as `\u202e`.

    Args:
        text: Any text; its tabs and line ends stay.
    """
    return _ORDERS.sub(_escaped, text.replace("\r\n", "\n"))


def on_one_line(text: str) -> str:
    """A text as `visible`, its line ends too."""
    return visible(text).replace("\n", "\\n")


def visible_on(stream: TextIO, text: str) -> str:
    """A text as it is, unless the stream is a terminal."""
    return visible(text) if stream.isatty() else text


def visible_json(text: str) -> str:
    """JSON that says the same, without what a terminal would obey."""
    return _ORDERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: str) -> None:
    """Write to standard output: to a file as it is, to a terminal so that nothing of it is obeyed."""
    sys.stdout.write(visible_on(sys.stdout, text))


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
