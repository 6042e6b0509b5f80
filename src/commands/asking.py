"""Prompts for `generate`, `compare` and `prefer`: from files or datasets, with few-shot examples before them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.commands.arguments import number
from src.errors import ParleyError
from src.ranges import COUNT, NOT_NEGATIVE, SEED

if TYPE_CHECKING:
    from src.contracts import Example
    from src.inference.examples import ExampleSet
    from src.inference.loading import FinishedModel
    from src.inference.prompts import PromptEncoder
    from src.models.generation_options import GenerationOptions

DEFAULT_BATCH_SIZE = 16
Shots = list[list["Example"]] | None


def add_data_arguments(parser: argparse.ArgumentParser, split: str = "test") -> None:
    """Add the options for prompts from files and datasets, and for few-shot examples.

    Args:
        parser: The command's parser.
        split: The default of `--split`.
    """
    count, seed = number(int, COUNT), number(int, SEED)
    group = parser.add_argument_group("what to ask")
    group.add_argument("--input", type=Path, metavar="FILE", help="prompts: a text file's lines, or a table's column")
    group.add_argument("--whole", action="store_true", help="the text file is one prompt, of however many lines")
    group.add_argument("--separator", metavar="TEXT", help=r"the text between a text file's prompts; \n is a line end")
    group.add_argument("--column", metavar="NAME", help="the table's column with prompts (prompt when left out)")
    group.add_argument(
        "--reference-column",
        action="append",
        default=[],
        metavar="NAME",
        help="a column with right answers; repeatable",
    )
    group.add_argument("--data", metavar="PATH", help="DialogSum or ChatbotData: a file, a directory or a hub name")
    group.add_argument("--split", default=split, help="of the data; a part is test[:100]")
    group.add_argument(
        "--row",
        metavar="ROWS",
        help="only these rows of the split, numbered from 0 as the hub does, each with its own reference: 40, 40,80 or "
        "0:10",
    )
    group.add_argument(
        "--data-seed", type=seed, default=42, metavar="N", help="the seed that divides a single table into splits"
    )
    group.add_argument(
        "--template", metavar="NAME", help=r"a prompt template's name, or a text with a {field}, where \n is a line end"
    )
    group.add_argument("--limit", type=count, metavar="N", help="ask only the first N")
    group.add_argument(
        "--shots", type=number(int, NOT_NEGATIVE), default=0, metavar="N", help="show the model N solved examples first"
    )
    group.add_argument("--shots-rows", metavar="ROWS", help="show it these rows first, in this order, such as 80,160")
    group.add_argument("--shots-data", metavar="PATH", help="where they are from; --data when left out")
    group.add_argument(
        "--shots-split",
        metavar="SPLIT",
        help="which split they are from; train when left out, and for --shots-rows the split that is asked",
    )
    group.add_argument("--shots-template", metavar="NAME", help="the template of solved examples, if it differs")
    group.add_argument(
        "--shot-separator", metavar="TEXT", help=r"the text after each example; five line ends (\n) when left out"
    )
    group.add_argument(
        "--special-tokens",
        action="store_true",
        help="encode names of special tokens in a prompt, such as <s>, as these tokens; they are plain text otherwise",
    )
    group.add_argument("--max-source-length", type=count, metavar="N", help="tokens of a prompt at most")
    group.add_argument("--batch-size", type=count, default=DEFAULT_BATCH_SIZE, metavar="N", help="prompts at a time")


def read_examples(args: argparse.Namespace) -> ExampleSet:
    """Read the examples of `--input` or `--data`.

    Raises:
        ParleyError: Both or neither are given, or an option goes with the other one.
    """
    from dataclasses import replace

    from src.datamodules.templates import unescaped
    from src.inference.examples import from_dataset, from_file

    if (args.input is None) == (args.data is None):
        raise ParleyError("give prompts with --input FILE, or a dataset with --data PATH (one of them).")
    check_misplaced(args)
    if args.data:
        found = from_dataset(args.data, args.split, template=args.template, seed=args.data_seed, rows=args.row)
    else:
        separator = "\n" if args.separator is None else unescaped(args.separator)
        found = from_file(
            args.input,
            column=args.column,
            references=args.reference_column,
            template=args.template,
            separator=None if args.whole else separator,
        )
    return replace(found, examples=found.examples[: args.limit])


def check_misplaced(args: argparse.Namespace) -> None:
    """Refuse options that have no effect with the given source of prompts.

    Raises:
        ParleyError: There is one; the message names it and the option that it belongs to.
    """
    if args.data and (args.column or args.reference_column):
        raise ParleyError("--column and --reference-column are for --input; --data knows its columns.")
    if args.input is None and (args.whole or args.separator is not None):
        raise ParleyError("--whole and --separator say how a text file is read; give one with --input.")
    if args.data is None and args.row:
        raise ParleyError("--row names rows of a dataset; give one with --data.")
    if args.whole and args.separator is not None:
        raise ParleyError("--whole takes the file for one prompt, and --separator parts it; leave one of them out.")
    shown = ("shots_data", "shots_split", "shots_template", "shot_separator")
    if not args.shots and args.shots_rows is None and (idle := [name for name in shown if getattr(args, name)]):
        raise ParleyError(f"--{idle[0].replace('_', '-')} is about solved examples; ask for some with --shots N.")
    if args.separator == "":
        raise ParleyError("--separator is empty; give the text that parts prompts, or --whole.")


def prepare(
    args: argparse.Namespace, finished: FinishedModel, asked: ExampleSet, options: GenerationOptions
) -> tuple[PromptEncoder, Shots, GenerationOptions]:
    """The prompt encoder, each prompt's few-shot examples, and the options with the stop sequence these need."""
    from dataclasses import replace

    from src.datamodules.templates import unescaped
    from src.inference.prompts import SHOT_SEPARATOR, STOP_SEQUENCE, PromptEncoder, resolve_style

    shots = _shots(args, asked.examples)
    given = None if args.shot_separator is None else unescaped(args.shot_separator)
    as_trained = not (shots or args.special_tokens)
    style = resolve_style(
        args.format,
        finished,
        turns=asked.turns and not args.special_tokens,
        trained=asked.trained and as_trained,
    )
    if shots and style in ("plain", "raw"):
        stop = STOP_SEQUENCE if given is None else given
        options = replace(options, stop_strings=[*options.stop_strings, stop])
    encoder = PromptEncoder(
        finished,
        style,
        options.max_new_tokens,
        args.max_source_length,
        args.system,
        SHOT_SEPARATOR if given is None else given,
        args.special_tokens,
    )
    return encoder, shots, options


def encode(
    args: argparse.Namespace, finished: FinishedModel, asked: ExampleSet, options: GenerationOptions
) -> tuple[list[list[int]], GenerationOptions]:
    """Prompts as token ids, and the decoding options, to which few-shot examples add a stop sequence."""
    encoder, shots, options = prepare(args, finished, asked, options)
    return encoder.encode(asked.examples, shots), options


def _shots(args: argparse.Namespace, asked: Sequence[Example]) -> Shots:
    from src.inference.examples import from_dataset
    from src.inference.prompts import choose_shots

    if not args.shots and args.shots_rows is None:
        return None
    if args.shots and args.shots_rows is not None:
        raise ParleyError("--shots takes the first examples and --shots-rows names them; leave one of them out.")
    source = args.shots_data or args.data
    if source is None:
        raise ParleyError("solved examples come from a dataset; say where they are with --shots-data PATH.")
    template = args.shots_template or args.template
    if args.shots_rows is not None:
        split = args.shots_split or args.split.partition("[")[0]
        rows = from_dataset(source, split, template=template, seed=args.data_seed, rows=args.shots_rows)
        return [rows.examples] * len(asked)
    pool = from_dataset(source, args.shots_split or "train", template=template, seed=args.data_seed).examples
    return [choose_shots(pool, args.shots, example) for example in asked]
