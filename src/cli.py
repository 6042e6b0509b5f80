"""The command `parley`: dispatches to the subcommand and reports errors as one line.

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
from src.commands.visible import on_one_line, visible
from src.errors import ParleyError, StoppedBySignalError, nearest_to
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
    "reward": "scores of texts, or of one or two columns of a file, by any reward",
    "inspect": "what is in a model, an adapter or a checkpoint",
    "tokenize": "what a tokenizer makes of texts, token by token",
    "score": "ROUGE of a predictions file, several columns side by side",
    "prefer": "preference pairs of a model's own answers, by any reward",
    "report": "one run or several as an HTML page with plots",
    "serve": "an endpoint that OpenAI's clients talk to",
    "export": "a checkpoint as a plain Hugging Face or PEFT directory",
    "demo": "make, fine-tune, align and compare a small model offline, in minutes",
}
EXIT_BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The words after `parley`; those of the process when left out.

    Returns:
        The exit status: 0 when all went well, 2 when the input cannot be used, 128 plus its number
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
        except BaseException:  # libraries may replace KeyboardInterrupt by anything
            if not interrupted.number or debug:
                raise
        if interrupted.number:
            interrupted.leave()
    return status


def _answer(words: list[str], *, debug: bool) -> int:
    logging.raiseExceptions = debug  # no traceback per log line when the disk that a library logs to is full
    try:
        status = _dispatch(words[0], words[1:])
        sys.stdout.flush()
        return status
    except StoppedBySignalError as stopped:
        if str(stopped):
            _say(words[0], str(stopped))
        return stopped.exit_status
    except BrokenPipeError:  # `parley score … | head`
        _drop_output()
        return 0
    except (ParleyError, OSError) as error:
        line = str(error) if isinstance(error, ParleyError) else _refused_by_the_system(error)
        if debug or line is None:
            raise
        _say(words[0], line)
        return EXIT_BAD_INPUT


def _say(command: str, line: str) -> None:
    sys.stderr.write(on_one_line(f"parley {command}: {line}") + "\n")


def _refused_by_the_system(error: OSError) -> str | None:
    """One line for an error of the disk or of permissions; None for any other OSError, which is a bug."""
    if error.errno == errno.ENAMETOOLONG:
        return f"the file name {str(error.filename)[:300]!r} is too long; give a shorter one."
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
        return None
    if error.filename is not None:
        return f"{error.filename} cannot be used ({error.strerror}); make room there, or change its permissions."
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
        return f"standard output cannot be written ({error.strerror}); send it elsewhere."
    return f"a file cannot be written ({error.strerror}); make room on the disk (--debug shows which)."


def _drop_output() -> None:
    """Redirect stdout to the null device, so that Python's flush at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(name: str, words: list[str]) -> int:
    if name in TRAINER_COMMANDS:
        trainer = importlib.import_module("src.commands.trainer")
        return trainer.run(name, words)
    if name not in COMMANDS:
        known = [*TRAINER_COMMANDS, *COMMANDS]
        nearest = nearest_to(name, known) or f"; choose one of: {', '.join(known)}"
        raise ParleyError(f"there is no such command{nearest}.")
    command = importlib.import_module(f"src.commands.{name}")
    parser = _Parser(prog=f"parley {name}", description=command.__doc__, formatter_class=_Formatter)
    command.add_arguments(parser)
    return command.run(parser.parse_intermixed_args(words)) or 0


def _log_to_stderr() -> None:
    """Send Parley's own log messages to stderr; the libraries' loggers are left as they are."""
    logger = logging.getLogger("src")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Visible("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False


class _Visible(logging.Formatter):
    """Makes control characters visible: file names and model output must not send commands to the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the paragraphs of a command's docstring and shows defaults."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        message = re.sub(r"^argument (\S+): is ", r"\1 is ", message)  # as `src.commands.arguments.number` has it
        if unknown := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            options = re.findall(r"--[\w-]+", self.format_usage())
            message = f"there is no option {unknown[1]}{nearest_to(unknown[1], options)}"
        raise ParleyError(f"{message}; `{self.prog} --help` shows what it takes.")


def _help() -> str:
    width = max(map(len, [*TRAINER_COMMANDS, *COMMANDS]))
    lines = ["usage: parley COMMAND [...]", "", "Fine-tune, align and ship dialogue models.", "", "Training:"]
    lines += [f"  {name:<{width}}  {summary}" for name, summary in TRAINER_COMMANDS.items()]
    lines += ["", "Other commands:"]
    lines += [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    lines += ["", "`parley COMMAND --help` shows a command's options; `--debug` shows the traceback of an error."]
    return "\n".join(lines) + "\n"
