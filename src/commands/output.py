"""What every command prints: a table for a person, JSON for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def show(rows: Sequence[Mapping[str, Any]], *, title: str | None = None, as_json: bool = False) -> None:
    """Print rows with the same keys as a table, or as JSON.

    Args:
        rows: What to print; the first row's keys are the columns.
        title: A line above the table; no part of the JSON.
        as_json: Print a JSON list instead of a table.
    """
    if as_json:
        sys.stdout.write(json.dumps(list(rows), ensure_ascii=False, indent=2) + "\n")
        return
    if not rows:
        return
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", show_edge=False)
    for key in rows[0]:
        numeric = all(isinstance(row[key], (int, float)) for row in rows)
        table.add_column(str(key), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console = Console(file=sys.stdout, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
