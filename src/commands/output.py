"""Output of the commands, as a table or as JSON."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from src.commands.visible import visible, visible_json

WIDTH_IN_A_FILE = 160
SIGNED_FIGURE = re.compile(r"[+-]\d")


def show(rows: Sequence[Mapping[str, Any]], *, title: str | None = None, as_json: bool = False) -> None:
    """Print rows as a table, or as JSON.

    Args:
        rows: What to print; the first row's keys are the columns. A cell that is missing or None stays blank.
        title: A line above the table; not part of the JSON.
        as_json: Print a JSON list instead of a table.
    """
    if as_json:
        show_json(list(rows))
        return
    if not rows:
        return
    # Texts of models and data are printed literally: rich must not interpret [bold] or :dog: in them.
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    shown = visible if console.is_terminal else str
    if not console.is_terminal:
        console.width = WIDTH_IN_A_FILE
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for key in rows[0]:
        figures = all(_is_figure(row.get(key)) for row in rows)
        table.add_column(shown(str(key)), justify="right" if figures else "left", overflow="fold")
    for row in rows:
        table.add_row(*(shown(_cell(row.get(key))) for key in rows[0]))
    if title is not None:  # rich wraps a table's own title at the table's width
        console.print(shown(title))
    console.print(table)


def show_json(value: Any) -> None:
    """Print a value as JSON; NaN and infinities, which JSON does not have, as null."""
    text = json.dumps(_finite(value), ensure_ascii=False, indent=2, allow_nan=False)
    sys.stdout.write((visible_json(text) if sys.stdout.isatty() else text) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _is_figure(value: Any) -> bool:
    if isinstance(value, str):
        return SIGNED_FIGURE.match(value) is not None
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
