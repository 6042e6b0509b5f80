"""Write a report of one or several runs as an HTML page: curves, answers, final metrics, settings, how to resume.

RUN is a run's directory. The page is one self-contained file that loads nothing from elsewhere. The metrics of the
later runs are shown with their difference from the first run's.

  parley report runs/version_0 runs/version_1 --output report.html
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from src.commands.arguments import number
from src.errors import ParleyError
from src.ranges import NOT_NEGATIVE
from src.writing import whole_file

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's directory, such as runs/version_0")
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page to write")
    parser.add_argument("--examples", type=number(int, NOT_NEGATIVE), default=8, metavar="N", help="answers to show")


def run(args: argparse.Namespace) -> None:
    from src.reporting.page import render
    from src.reporting.runs import read_run

    if args.output.suffix.lower() not in (".html", ".htm"):
        raise ParleyError(f"--output is {args.output}, and the report is a page; name a file that ends in .html.")
    page = render([read_run(directory) for directory in dict.fromkeys(args.runs)], args.examples)
    with whole_file(args.output) as stream:
        stream.write(page)
    log.info("Written to %s.", args.output)
