"""Score texts, or one or two columns of a file: the reward, every label of a classifier, toxicity.

REWARD is a reward's class (ProfanityReward), YAML of one, a recipe, or a classifier's directory. Of two columns of
answers to the same prompts (before and after training) it shows how much mean and standard deviation changed.

  parley reward ProfanityReward "You are a fool." "Good morning."
  parley reward models/classifier --input runs/x/before_after.csv --column response_before --column response_after
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.commands import arguments
from src.commands.output import show, show_json
from src.commands.visible import say
from src.errors import ParleyError
from src.ranges import NOT_NEGATIVE

if TYPE_CHECKING:
    from src.contracts import Example
    from src.inference.rewards import Measured

SHOWN = 60  # characters of a text in a table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reward", metavar="REWARD", help=arguments.REWARD_HELP)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="answers to score")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="the prompt that they answer")
    parser.add_argument("--input", type=Path, metavar="FILE", help="score a table's answers instead")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="a column of answers; a second one is compared with the first",
    )
    parser.add_argument("--prompt-column", metavar="NAME", help="the column of their prompts")
    parser.add_argument(
        "--reference-column", action="append", default=[], metavar="NAME", help="a column of right answers; repeatable"
    )
    parser.add_argument("--toxicity", action="store_true", help="measure the toxicity of the answers as well")
    parser.add_argument(
        "--toxicity-model", metavar="DIR", help="by this classifier's label `hate`; alt-profanity-check when left out"
    )
    shown = arguments.number(int, NOT_NEGATIVE)
    parser.add_argument("--show", type=shown, default=10, metavar="N", help="print the first N rows of a file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> None:
    from src.inference.rewards import Rewarder

    if bool(args.texts) == (args.input is not None):
        raise ParleyError("give texts, or a table of them with --input FILE and --column NAME (one of them).")
    if args.input is None and (args.column or args.prompt_column or args.reference_column):
        raise ParleyError("--column and its like are for --input; leave them out.")
    if args.input is not None and (not args.column or len(args.column) > 2 or args.prompt):
        raise ParleyError("of a file, name one --column with answers, or two to compare; prompts by --prompt-column.")
    columns = _columns(args)
    rewarder = Rewarder(
        arguments.reward(args.reward), toxicity=args.toxicity or bool(args.toxicity_model), by=args.toxicity_model
    )
    measured = {name: rewarder.measure(examples) for name, examples in columns.items()}
    if args.json:
        show_json(_as_json(measured))
        return
    for name, found in measured.items():
        rows = [_row(one) for one in found.rows]
        show(rows[: len(rows) if args.input is None else args.show], title=name if len(measured) > 1 else None)
        say("\n" * (len(measured) > 1 and args.show > 0))
    if args.input is not None:
        show([{"answers": name, **found.summary} for name, found in measured.items()])
    if len(measured) == 2:
        say("\n")
        show(_changes(*measured.values()), title="From the first column to the second (low to high: 95 % interval):")


def _columns(args: argparse.Namespace) -> dict[str, list[Example]]:
    """The answers of each column, as Examples whose target is the answer to score."""
    from src.contracts import Example
    from src.inference.examples import from_file

    if args.input is None:
        return {"answers": [Example(args.prompt, text) for text in args.texts]}
    found: dict[str, list[Example]] = {}
    for name in args.column:
        answers = from_file(args.input, column=name, references=args.reference_column, may_be_empty=True).examples
        prompts = [""] * len(answers)
        if args.prompt_column:
            prompts = [item.prompt for item in from_file(args.input, column=args.prompt_column).examples]
        found[name] = [
            Example(prompt, answer.prompt, answer.references, answer.id)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    return found


def _row(one: Any) -> dict[str, Any]:
    shown = one.text if len(one.text) <= SHOWN else f"{one.text[: SHOWN - 1]}…"
    labels = {
        f"{label} ({what})": figure
        for label, pair in one.labels.items()
        for what, figure in zip(("logit", "probability"), pair, strict=True)
    }
    return {"id": one.id, "text": shown, "reward": one.reward, **labels} | (
        {} if one.toxicity is None else {"toxicity": one.toxicity}
    )


def _changes(before: Measured, after: Measured) -> list[dict[str, Any]]:
    from src.inference.rewards import changes

    return [
        {
            "figure": name,
            "before": change.before,
            "after": change.after,
            "falls by %": change.percent,
            "low": change.low,
            "high": change.high,
        }
        for name, change in changes(before, after).items()
    ]


def _as_json(measured: dict[str, Measured]) -> dict[str, Any]:
    from dataclasses import asdict

    result: dict[str, Any] = {}
    for name, found in measured.items():
        result[name] = {"rows": [asdict(one) for one in found.rows], "summary": found.summary}
    pair: Sequence[Measured] = list(measured.values())
    return result | ({"changes": _changes(*pair)} if len(pair) == 2 else {})
