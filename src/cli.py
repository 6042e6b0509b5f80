"""The command `parley`: finds the subcommand, turns what goes wrong into one line.

Nothing heavy is imported here: `parley --help` must answer at once, and each subcommand imports what it needs.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence

from src import __version__
from src.errors import ParleyError, StoppedBySignalError
from src.signals import interruption

TRAINER_COMMANDS = {
    "fit": "train a model from YAML: any Module, any DataModule, any strategy",
    "validate": "evaluate on the validation split",
    "test": "evaluate on the test split and write every prediction",
    "predict": "write predictions for the test split, without scores",
}
COMMANDS = {
    "init": "make a small base model and tokenizer from scratch",
    "generate": "answers to one prompt, a file or a split, with any decoding",
    "chat": "talk to a model in the terminal",
    "compare": "several models on the same examples, side by side, with ROUGE and differences",
    "score": "ROUGE of a predictions file, several columns side by side",
    "report": "one run or several as an HTML page with plots",
    "export": "a checkpoint as a plain Hugging Face or PEFT directory",
    "demo": "the whole road offline, in minutes",
}
EXIT_BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The words after `parley`; those of the process when left out.

    Returns:
        The exit status: 0 when all went well, 2 when the input cannot be used, 128 and its number
        after a signal.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"parley {__version__}\n")
        return 0
    _log_to_stderr()
    with interruption(words[0], at_once=words[0] in TRAINER_COMMANDS) as interrupted:
        try:
            status = _answer(words, debug=debug)
        except BaseException:  # whatever a library made of it
            if not interrupted.number or debug:
                raise
        if interrupted.number:
            interrupted.say()
            return interrupted.exit_status
    return status


def _answer(words: list[str], *, debug: bool) -> int:
    try:
        return _dispatch(words[0], words[1:])
    except StoppedBySignalError as stopped:
        if str(stopped):
            sys.stderr.write(f"parley {words[0]}: {stopped}\n")
        return stopped.exit_status
    except ParleyError as error:
        if debug:
            raise
        sys.stderr.write(f"parley {words[0]}: {error}\n")
        return EXIT_BAD_INPUT
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # `parley score … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if debug or error.errno != errno.ENAMETOOLONG:
            raise
        name = os.fspath(error.filename or "")
        sys.stderr.write(f"parley {words[0]}: the file name {str(name)[:300]!r} is too long; give a shorter one.\n")
        return EXIT_BAD_INPUT


def _dispatch(name: str, words: list[str]) -> int:
    if name in TRAINER_COMMANDS:
        trainer = importlib.import_module("src.commands.trainer")
        return trainer.run(name, words)
    if name not in COMMANDS:
        known = ", ".join([*TRAINER_COMMANDS, *COMMANDS])
        raise ParleyError(f"there is no such command; choose one of: {known}.")
    command = importlib.import_module(f"src.commands.{name}")
    parser = _Parser(prog=f"parley {name}", description=command.__doc__, formatter_class=_Formatter)
    command.add_arguments(parser)
    return command.run(parser.parse_args(words)) or 0


def _log_to_stderr() -> None:
    """Show our own messages, and warnings of the libraries' as they come."""
    logger = logging.getLogger("src")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the paragraphs of a command's docstring and shows defaults."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        message = re.sub(r"^argument (\S+): is ", r"\1 is ", message)  # as `src.commands.arguments.number` has it
        raise ParleyError(f"{message}; `{self.prog} --help` shows what it takes.")


def _help() -> str:
    width = max(map(len, [*TRAINER_COMMANDS, *COMMANDS]))
    lines = ["usage: parley COMMAND [...]", "", "Fine-tune, align and ship dialogue models.", "", "Training:"]
    lines += [f"  {name:<{width}}  {summary}" for name, summary in TRAINER_COMMANDS.items()]
    lines += ["", "Beside it:"]
    lines += [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    lines += ["", "`parley COMMAND --help` shows a command's options; `--debug` shows the traceback of an error."]
    return "\n".join(lines) + "\n"
