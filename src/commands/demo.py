"""Try everything on the bundled sample, offline, in minutes: a model from scratch, fine-tuned, aligned, compared.

Every step is a command that you could type; it is shown before it runs. The results are in one directory, with an HTML
report about them.

  parley demo          # a T5 from scratch, fine-tuning, LoRA, PPO against insults, before and after
  parley demo --all    # by RLOO, GRPO and DPO as well
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from src.commands.arguments import number
from src.ranges import NOT_NEGATIVE

if TYPE_CHECKING:
    from src.inference.demo import Aligned, Changed, Step

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="runs/demo", metavar="DIR", help="where everything goes")
    parser.add_argument("--all", action="store_true", help="align by every method: PPO, RLOO, GRPO and DPO")
    parser.add_argument("--no-align", action="store_true", help="stop once there is a summariser and an adapter")
    parser.add_argument(
        "--examples", type=number(int, NOT_NEGATIVE), default=2, metavar="N", help="dialogues to show at the end"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON as well")


def run(args: argparse.Namespace) -> None:
    import time
    from dataclasses import asdict
    from pathlib import Path

    from src.commands.output import show, show_json
    from src.errors import ParleyError
    from src.inference.demo import METHODS, Demo

    if args.all and args.no_align:
        raise ParleyError("--all and --no-align contradict each other; give one of them.")
    start = time.perf_counter()
    demo = Demo(Path(args.output), () if args.no_align else METHODS if args.all else METHODS[:1])
    if not demo.methods and not args.no_align:
        log.warning("Without alt-profanity-check nothing is aligned: pip install -e '.[rewards]'")
    for count, step in enumerate(demo.steps(), start=1):
        _take(count, step)
    seconds = time.perf_counter() - start
    _show_examples(demo.changed(args.examples) or demo.summaries(args.examples))
    rouge = [{"": "ROUGE-1", "before training": demo.rouge1("before"), "after": demo.rouge1("after")}]
    show(rouge, title="the summariser, on 240 held-out dialogues")
    aligned = demo.aligned()
    if aligned:
        show([_row(each) for each in aligned], title="aligned: toxicity and ROUGE-1 of its summaries, before and after")
    log.info("%.0f s in all. The model: %s. The page to look at: %s", seconds, demo.directory / "model", demo.report)
    if args.json:
        rouge1 = {"rouge1_before": demo.rouge1("before"), "rouge1_after": demo.rouge1("after")}
        show_json(
            rouge1 | {"aligned": [asdict(each) for each in aligned], "seconds": seconds, "report": str(demo.report)}
        )


def _take(count: int, step: Step) -> None:
    """Log a step's title and command, and run it."""
    import shlex

    from src.cli import main
    from src.errors import ParleyError, StoppedBySignalError

    log.info("\n▶ %d. %s\n  %s\n  $ parley %s\n", count, step.title, step.look, shlex.join(step.words))
    status = main(step.words)
    if status > 128:
        raise StoppedBySignalError(f"stopped in the step “{step.title}”.", status - 128)
    if status:
        raise ParleyError(f"the step “{step.title}” failed; run its command by itself to see more.")


def _show_examples(examples: Sequence[Changed]) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console(highlight=False, width=100)
    console.print()
    for each in examples:
        text = Text(f"{each.prompt.strip()}\n\n")
        for label, answer in (("before   ", each.before), ("after    ", each.after)):
            text.append(label, style="bold").append(f"{answer}\n")
        console.print(Panel(text))


def _row(aligned: Aligned) -> dict[str, str]:
    return {
        "by": aligned.method,
        "toxicity": f"{aligned.toxicity_before:.3f} → {aligned.toxicity_after:.3f}",
        "fall": f"{aligned.fall:.1f} % ({aligned.fall_low:.1f} to {aligned.fall_high:.1f})",
        "ROUGE-1": f"{100 * aligned.rouge1_before:.1f} → {100 * aligned.rouge1_after:.1f}",
        "KL, nats": f"{aligned.kl:.2f}",
    }
