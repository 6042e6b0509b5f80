"""Options that `generate`, `chat` and `compare` share."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.errors import ParleyError
from src.ranges import ANY, COUNT, NOT_NEGATIVE, SEED, Range

if TYPE_CHECKING:
    from src.contracts import Example
    from src.inference.examples import ExampleSet
    from src.inference.loading import FinishedModel
    from src.inference.rewards import Reward
    from src.models.generation import GenerationOptions

log = logging.getLogger(__name__)
DEFAULT_BATCH_SIZE = 16
STYLES = ("auto", "plain", "published", "chat", "raw")
REWARD_HELP = (
    "a reward's class (ProfanityReward), YAML of one ('{class_path: LengthReward, init_args: {target: 15}}'), a file "
    "of settings with a reward in it, or a classifier's directory or hub name"
)
_NUMBERS: dict[str, tuple[type, str]] = {
    "max_new_tokens": (int, "tokens of an answer at most"),
    "min_new_tokens": (int, "tokens of an answer at least"),
    "num_beams": (int, "beams of the beam search"),
    "num_return_sequences": (int, "answers a prompt"),
    "no_repeat_ngram_size": (int, "no n-gram of this size twice in an answer"),
    "repetition_penalty": (float, "above 1 makes tokens that occurred less likely"),
    "length_penalty": (float, "above 0 favours longer beams"),
    "temperature": (float, "below 1 leans towards likely tokens; switches sampling on"),
    "top_k": (int, "sample among so many likeliest tokens, 0 for all; switches sampling on"),
    "top_p": (float, "sample among the likeliest tokens that share this probability; switches sampling on"),
    "seed": (int, "makes sampling repeatable"),
}


def number(kind: type[int] | type[float], allowed: Range = ANY) -> Callable[[str], float]:
    """A number of the command line, for argparse's `type`.

    Args:
        kind: Whole numbers or any.
        allowed: Where it must be.
    """

    def read(text: str) -> float:
        shown = text[:40] or "empty"
        try:
            value = kind(text)
        except ValueError as error:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"is {shown}; it must be {what}, {allowed}") from error
        if not allowed.holds(value):
            raise argparse.ArgumentTypeError(f"is {shown}; it must be {allowed}")
        return value

    return read


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a model is and how to load it."""
    group = parser.add_argument_group("model")
    group.add_argument("--base-model", metavar="DIR", help="of an adapter or checkpoint, its base if that has moved")
    group.add_argument("--gguf-file", metavar="NAME", help="the GGUF file in the model's directory")
    add_trust_argument(group)
    group.add_argument("--device", default="auto", help="cpu, cuda, ...; auto is CUDA where there is one")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")


def add_trust_argument(parser: argparse._ActionsContainer) -> None:
    """Whether a stranger's code may run."""
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the code that a model's directory brings; off by default"
    )


def add_style_arguments(parser: argparse.ArgumentParser) -> None:
    """How a model is asked."""
    group = parser.add_argument_group("how the model is asked")
    group.add_argument(
        "--format",
        choices=STYLES,
        default="auto",
        help="for decoder-only models: chat is the tokenizer's template, published is <s>prompt</s><s>, plain a line, "
        "raw goes on where the prompt ends; auto takes the template where there is one, else what training took",
    )
    group.add_argument(
        "--chat-template", dest="format", action="store_const", const="chat", help="the same as --format chat"
    )
    group.add_argument(
        "--system", metavar="TEXT", help="what the model is told first; in a talk, or with a chat template"
    )


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """How to decode; an option that is not given leaves no attribute."""
    group = parser.add_argument_group(
        "decoding", "by the model's own settings where nothing is said, else greedy with 64 new tokens but for what is"
    )
    group.add_argument(
        "--preset", metavar="NAME", help="a file in configs/decoding, a path, or `model`: its own settings"
    )
    unset: dict[str, Any] = {"default": argparse.SUPPRESS}
    group.add_argument("--do-sample", action=argparse.BooleanOptionalAction, help="draw tokens at random", **unset)
    for name, (kind, text) in _NUMBERS.items():
        metavar = "N" if kind is int else "X"
        group.add_argument(f"--{name.replace('_', '-')}", type=number(kind), metavar=metavar, help=text, **unset)
    group.add_argument(
        "--bad-word", dest="bad_words", action="append", metavar="TEXT", help="never generated; repeatable", **unset
    )
    group.add_argument(
        "--stop", dest="stop_strings", action="append", metavar="TEXT", help="ends an answer; repeatable", **unset
    )


def add_data_arguments(parser: argparse.ArgumentParser, split: str = "test") -> None:
    """What to ask, besides a single prompt; of a dataset, the split of this name."""
    count, seed = number(int, COUNT), number(int, SEED)
    group = parser.add_argument_group("what to ask")
    group.add_argument("--input", type=Path, metavar="FILE", help="prompts: a text file's lines, or a table's column")
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
        "--data-seed", type=seed, default=42, metavar="N", help="by which one table is dealt into splits"
    )
    group.add_argument("--template", metavar="NAME", help="a prompt template's name, or a text with a {field}")
    group.add_argument("--limit", type=count, metavar="N", help="ask only the first N")
    group.add_argument(
        "--shots", type=number(int, NOT_NEGATIVE), default=0, metavar="N", help="show the model N solved examples first"
    )
    group.add_argument("--shots-data", metavar="PATH", help="where they are from; --data when left out")
    group.add_argument("--shots-split", default="train", metavar="SPLIT", help="which split they are from")
    group.add_argument("--shot-separator", metavar="TEXT", help="what ends an example; five newlines when left out")
    group.add_argument("--max-source-length", type=count, metavar="N", help="tokens of a prompt at most")
    group.add_argument("--batch-size", type=count, default=DEFAULT_BATCH_SIZE, metavar="N", help="prompts at a time")


def load(args: argparse.Namespace, name: str) -> FinishedModel:
    """Load a model as the options say, without the libraries' asides."""
    from src.inference.loading import load_finished

    return load_finished(
        name,
        base_model=args.base_model,
        gguf_file=args.gguf_file,
        device=args.device,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
    )


def decoding_options(args: argparse.Namespace, finished: FinishedModel | None = None) -> GenerationOptions:
    """The model's own settings where nothing is said; else the preset with the command line's options over it.

    Args:
        args: The command line's.
        finished: The model. Without it mistakes show, before anything is loaded.
    """
    from src.inference.decoding import OWN, describe, with_changes, with_preset
    from src.models.generation import GenerationOptions, ModelOptions

    names = ("do_sample", *_NUMBERS, "bad_words", "stop_strings")
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    preset = args.preset or (None if given else OWN)
    model = finished.model if finished else None
    options = with_preset(GenerationOptions(), preset, model) if preset else GenerationOptions()
    options = with_changes(options, given)
    if finished is not None:
        whose = "the model's own settings" if isinstance(options, ModelOptions) else "none of the model's own settings"
        log.info("Decoding of %s by %s: %s.", finished.name, whose, describe(options))
    return options


def reward(text: str) -> Reward:
    """The reward that a command line names; see `src.inference.rewards`.

    Raises:
        ParleyError: It names none, or its settings are not right.
    """
    from src.commands.complaints import essence
    from src.inference.rewards import read_reward

    try:
        return read_reward(text)
    except argparse.ArgumentError as error:
        raise ParleyError(f"{essence(str(error))}; docs/rewards.md lists the rewards.") from error


def read_examples(args: argparse.Namespace) -> ExampleSet:
    """What `--input` or `--data` names.

    Raises:
        ParleyError: Both or neither are given, or an option goes with the other one.
    """
    from dataclasses import replace

    from src.inference.examples import from_dataset, from_file

    if (args.input is None) == (args.data is None):
        raise ParleyError("give prompts with --input FILE, or a dataset with --data PATH (one of them).")
    if args.data and (args.column or args.reference_column):
        raise ParleyError("--column and --reference-column are for --input; --data knows its columns.")
    if args.data:
        found = from_dataset(args.data, args.split, template=args.template, seed=args.data_seed)
    else:
        found = from_file(args.input, column=args.column, references=args.reference_column, template=args.template)
    return replace(found, examples=found.examples[: args.limit])


def encode(
    args: argparse.Namespace, finished: FinishedModel, asked: ExampleSet, options: GenerationOptions
) -> tuple[list[list[int]], GenerationOptions]:
    """Prompts as token ids, and the options with what the prompts ask for (few-shot examples have a stop sequence)."""
    from dataclasses import replace

    from src.inference.prompts import SHOT_SEPARATOR, STOP_SEQUENCE, PromptEncoder, resolve_style

    shots = _shots(args, asked.examples)
    separator = SHOT_SEPARATOR if args.shot_separator is None else args.shot_separator
    style = resolve_style(args.format, finished, turns=asked.turns, trained=asked.trained and not shots)
    if shots and style in ("plain", "raw"):
        stop = STOP_SEQUENCE if args.shot_separator is None else args.shot_separator
        options = replace(options, stop_strings=[*options.stop_strings, stop])
    encoder = PromptEncoder(finished, style, options.max_new_tokens, args.max_source_length, args.system, separator)
    return encoder.encode(asked.examples, shots), options


def _shots(args: argparse.Namespace, asked: Sequence[Example]) -> list[list[Example]] | None:
    from src.inference.examples import from_dataset
    from src.inference.prompts import choose_shots

    if not args.shots:
        return None
    source = args.shots_data or args.data
    if source is None:
        raise ParleyError("--shots needs solved examples; say where they are with --shots-data PATH.")
    pool = from_dataset(source, args.shots_split, template=args.template, seed=args.data_seed).examples
    return [choose_shots(pool, args.shots, example) for example in asked]


def progress(items: Sequence[Any], title: str = "Generating") -> Iterable[Any]:
    """Go over batches behind a bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, title, console=console, transient=True, disable=not console.is_terminal)
