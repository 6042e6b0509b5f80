"""Draw what commands print in a terminal, as an SVG for docs/ that asks no other host for anything.

python -m scripts.picture_terminal docs/images/terminal.svg "parley generate MODEL --prompt Hello" "parley …"
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = 104
# rich's own has a font from another host.
FORMAT = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
font: {char_height}px / {line_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace
}}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def printed(command: str) -> Text:
    """What a command of Parley's prints, colours included; what it logs meanwhile is left out.

    Raises:
        SystemExit: It fails.
    """
    words = shlex.split(command)
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    done = subprocess.run(
        [sys.executable, "-m", "src", *words[1:]],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{command}: {done.stderr}")
    return Text.from_ansi(done.stdout.rstrip())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the picture")
    parser.add_argument("commands", nargs="+", metavar="COMMAND", help="each begins with `parley`")
    args = parser.parse_args(argv)
    if strange := [command for command in args.commands if not command.startswith("parley ")]:
        parser.error(f"{strange[0]!r} does not begin with `parley`")
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor")
    for command in args.commands:
        console.print(Text(f"$ {command}", style="bold"), printed(command), "", sep="\n", soft_wrap=False)
    args.file.write_text(console.export_svg(title="parley", code_format=FORMAT), encoding="utf-8")
    print(f"drawn: {args.file}")


if __name__ == "__main__":
    main()
