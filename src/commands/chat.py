"""Talk to a model in the terminal.

MODEL is a checkpoint (.ckpt), an adapter directory, a model directory or a hub name. Answers appear as they are
generated. Lines from a pipe are answered too, one after the other. /help shows what can be done besides talking;
/quit, Ctrl-D and Ctrl-C leave.

  parley chat skt/kogpt2-base-v2 --preset top-k --bad-word "<unk>"
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from src.commands import arguments
from src.commands.visible import say, visible_on
from src.errors import ParleyError
from src.ranges import NOT_NEGATIVE, Range

if TYPE_CHECKING:
    from src.inference.chat import Talk

YOU, MODEL = "you> ", "model> "
log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, an adapter or model directory, or a hub name")
    parser.add_argument(
        "--context",
        type=arguments.number(int, Range(2)),
        metavar="N",
        help="size of the context window in tokens, the answer included",
    )
    parser.add_argument(
        "--history",
        type=arguments.number(int, NOT_NEGATIVE),
        metavar="N",
        help="the most earlier exchanges in a prompt; 0 suits models that were trained on single questions",
    )
    arguments.add_style_arguments(parser)
    arguments.add_decoding_arguments(parser)
    arguments.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    talk = _talk(args)
    try:
        _loop(talk)
    except KeyboardInterrupt:
        sys.stdout.write("\n")
    return 0


def _talk(args: argparse.Namespace) -> Talk:
    arguments.decoding_options(args)
    from src.inference.chat import Talk
    from src.inference.prompts import resolve_style

    finished = arguments.load(args, args.model)
    style = resolve_style(args.format, finished, turns=True, trained=True)
    options = arguments.decoding_options(args, finished)
    return Talk(finished, style, options, system=args.system, context=args.context, memory=args.history)


def _loop(talk: Talk) -> None:
    from src.inference.chat_commands import ChatCommands
    from src.inference.decoding import describe
    from src.models.sources import first_line

    interactive = sys.stdin.isatty()
    with contextlib.suppress(ValueError):  # handlers can be set in the main thread only
        signal.signal(signal.SIGINT, signal.default_int_handler)  # from now on Ctrl-C leaves the chat

    def write(text: str) -> None:
        say(text)
        sys.stdout.flush()

    def notice(text: str) -> None:
        sys.stderr.write(visible_on(sys.stderr, f"({text})\n"))
        sys.stderr.flush()

    def forgot(count: int) -> None:
        oldest = "the oldest exchange is" if count == 1 else f"the {count} oldest exchanges are"
        notice(f"the window is full: {oldest} forgotten")

    def ask(question: str) -> None:
        prefix = MODEL if interactive else ""
        write(prefix)
        exchange = talk.ask(question, write=write, forgot=forgot)
        if talk.decoding.num_return_sequences > 1:
            write("\n".join(["", *_numbered(exchange.answers)] if prefix else _numbered(exchange.answers)))
        elif talk.decoding.num_beams > 1:
            write(exchange.answer)
        write("\n")

    commands = ChatCommands(talk, ask, write, notice)
    if interactive:
        notice(f"{talk.finished.name}; turns: {talk.style}; decoding: {describe(talk.options)}; /help shows more")
        if talk.style == "published" and talk.memory is None:
            notice("trained on single questions, as on ChatbotData? --history 0 asks each by itself")
    for line in _lines(interactive):
        try:
            if line.startswith("/") and not line.startswith("//"):
                if not commands.run(line):
                    return
            elif line.strip():
                ask(line[1:] if line.startswith("//") else line)
        except Exception as error:  # no error in one answer ends the chat
            log.debug("%r failed", line, exc_info=True)
            sys.stdout.flush()
            notice(str(error) if isinstance(error, ParleyError) else f"that failed: {first_line(error)}")


def _numbered(answers: list[str]) -> list[str]:
    return [f"{number}: {text}" for number, text in enumerate(answers, start=1)]


def _lines(interactive: bool) -> Iterator[str]:
    """The lines that the user types, until the end of input."""
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives `input` its line editing)
        while True:
            try:
                yield input(YOU)
            except EOFError:
                sys.stdout.write("\n")
                return
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    for line in sys.stdin:
        yield line.rstrip("\r\n")
