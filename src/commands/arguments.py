"""Command-line options shared by several commands: the model, the prompt format, decoding, rewards."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from src.errors import ParleyError
from src.ranges import ANY, Range

if TYPE_CHECKING:
    from src.inference.loading import FinishedModel
    from src.inference.rewards import Reward
    from src.models.generation_options import GenerationOptions

log = logging.getLogger(__name__)
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
    """A parser of numbers on the command line, for argparse's `type`.

    Args:
        kind: `int` or `float`.
        allowed: The range that the number must be in.

    Returns:
        A function from text to number; it raises `argparse.ArgumentTypeError` for anything else.
    """

    def read(text: str) -> float:
        shown = text[:40] or "empty"
        try:
            value = kind(text)
        except ValueError as error:
            what = "a whole number" if kind is int else "a number"
            within = "" if allowed is ANY else f", {allowed}"
            raise argparse.ArgumentTypeError(f"is {shown}; it must be {what}{within}") from error
        if not allowed.holds(value):
            raise argparse.ArgumentTypeError(f"is {shown}; it must be {allowed}")
        return value

    return read


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to load a model."""
    group = parser.add_argument_group("model")
    group.add_argument("--base-model", metavar="DIR", help="of an adapter or checkpoint, its base if that has moved")
    group.add_argument("--gguf-file", metavar="NAME", help="the GGUF file in the model's directory")
    add_trust_argument(group)
    group.add_argument("--device", default="auto", help="cpu, cuda, ...; auto is CUDA where there is one")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")


def add_trust_argument(parser: argparse._ActionsContainer) -> None:
    """Add `--trust-remote-code`."""
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the code that a model's directory brings; off by default"
    )


def add_style_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the prompt format."""
    group = parser.add_argument_group("how the model is asked")
    group.add_argument(
        "--format",
        choices=STYLES,
        default="auto",
        help="for decoder-only models: chat is the tokenizer's template, published is <s>prompt</s><s>, plain a line, "
        "raw continues the bare prompt; auto takes the template if there is one, else the format of training",
    )
    group.add_argument(
        "--chat-template", dest="format", action="store_const", const="chat", help="the same as --format chat"
    )
    group.add_argument("--system", metavar="TEXT", help="the system prompt, for conversations and chat templates")


def add_decoding_arguments(parser: argparse.ArgumentParser, *, engine: bool = False) -> None:
    """Add the decoding options; one that is not given leaves no attribute in the namespace.

    Args:
        parser: Of a command.
        engine: Offer a choice of engines; not for a command whose answers are shown token by token.
    """
    group = parser.add_argument_group(
        "decoding",
        "the model's own settings if no option is given; otherwise defaults (greedy, 64 new tokens) for the rest",
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
        "--stop",
        dest="stop_strings",
        action="append",
        metavar="TEXT",
        help=r"ends an answer; \n is a line end; repeatable",
        **unset,
    )
    if engine:
        group.add_argument(
            "--engine",
            choices=("plain", "static"),
            help="static: a cache of fixed size, and steps that a GPU replays as graphs; without beams and --stop",
            **unset,
        )


def load(args: argparse.Namespace, name: str) -> FinishedModel:
    """Load a model as the options say.

    Args:
        args: With the options of `add_model_arguments`.
        name: A checkpoint, an adapter or model directory, or a hub name.
    """
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
    """The decoding options: the model's own if none are given, else those of the preset, overridden by given ones.

    Args:
        args: With the options of `add_decoding_arguments`.
        finished: The model; None to check the options before a model is loaded.
    """
    from src.datamodules.templates import unescaped
    from src.inference.decoding import OWN, describe, with_changes, with_preset
    from src.models.generation_options import GenerationOptions, ModelOptions

    names = ("do_sample", *_NUMBERS, "bad_words", "stop_strings", "engine")
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if "stop_strings" in given:
        given["stop_strings"] = [unescaped(text) for text in given["stop_strings"]]
    preset = args.preset or (None if given.keys() - {"engine"} else OWN)  # which changes no answer
    model = finished.model if finished else None
    options = with_preset(GenerationOptions(), preset, model) if preset else GenerationOptions()
    options = with_changes(options, given)
    if finished is not None:
        whose = "the model's own settings" if isinstance(options, ModelOptions) else "none of the model's own settings"
        log.info("Decoding of %s by %s: %s.", finished.name, whose, describe(options))
    return options


def reward(text: str) -> Reward:
    """The reward named on the command line; see `src.inference.rewards`.

    Raises:
        ParleyError: There is no such reward, or its settings are wrong.
    """
    from src.commands.complaints import essence
    from src.inference.rewards import read_reward

    try:
        return read_reward(text)
    except argparse.ArgumentError as error:
        raise ParleyError(f"{essence(str(error))}; docs/rewards.md lists the rewards.") from error


def progress(items: Sequence[Any], title: str = "Generating") -> Iterable[Any]:
    """Iterate with a progress bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, title, console=console, transient=True, disable=not console.is_terminal)
