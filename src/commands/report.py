"""Write a report of one or several runs as an HTML page: curves, answers, final metrics, settings, how to resume.

RUN is a run's directory, or one that holds runs at any depth, which stands for all of them, the oldest first. The page
is one file that asks nothing of any other place; it opens anywhere. A figure has its difference from that of the first
run beside it whose figure means the same: losses of one kind, rewards by one reward, tests on the same data.

  parley report runs/version_0 runs/version_1 --output report.html
  parley report runs/demo
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
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="a run's directory, such as runs/version_0, or one that holds some",
    )
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page to write")
    parser.add_argument("--examples", type=number(int, NOT_NEGATIVE), default=8, metavar="N", help="answers to show")


def run(args: argparse.Namespace) -> None:
    from src.reporting.finding import find_runs
    from src.reporting.page import render
    from src.reporting.runs import read_run

    if args.output.suffix.lower() not in (".html", ".htm"):
        raise ParleyError(f"--output is {args.output}, and the report is a page; name a file that ends in .html.")
    page = render([read_run(directory) for directory in find_runs(args.runs)], args.examples)
    with whole_file(args.output) as stream:
        stream.write(page)
    log.info("Written to %s.", args.output)
