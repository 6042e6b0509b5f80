"""Train a small model on the bundled sample, offline, and see what it learned.

Makes a T5 from scratch, tests it, trains it, tests it again and exports it, with the same commands that you
would type.
"""

from __future__ import annotations

import argparse

from src.commands.arguments import number
from src.ranges import NOT_NEGATIVE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="runs/demo", metavar="DIR", help="where everything goes")
    parser.add_argument(
        "--examples", type=number(int, NOT_NEGATIVE), default=4, metavar="N", help="dialogues to show at the end"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON as well")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict
    from pathlib import Path

    from rich.console import Console
    from rich.panel import Panel

    from src.cli import main
    from src.commands.output import show_json
    from src.inference.demo import run_demo

    result = run_demo(main, Path(args.output), num_examples=args.examples)
    console = Console(highlight=False, width=100)
    console.print()
    for example in result.examples:
        answers = f"[bold]reference[/]  {example['reference']}\n[bold]model    [/]  {example['summary']}"
        console.print(Panel(f"{example['prompt'].strip()}\n\n{answers}"))
    console.print(
        f"ROUGE-1 on the held-out dialogues: [bold]{result.rouge1_before:.3f}[/] before training, "
        f"[bold]{result.rouge1_after:.3f}[/] after ({result.seconds:.0f} s in all)."
    )
    console.print(f"The run is in {args.output}, the model in {result.output}.")
    if args.json:
        show_json({key: str(value) if isinstance(value, Path) else value for key, value in asdict(result).items()})
