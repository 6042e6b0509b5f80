"""The exceptions that a user is meant to see, and what helps to word them."""

import difflib
from collections.abc import Iterable


class ParleyError(Exception):
    """Something that the user can mend, said in one line.

    The message states what is wrong and then what to do. The command line prints it without a
    traceback and leaves with status 2; `--debug` shows the traceback.
    """


class StoppedBySignalError(Exception):
    """Training was asked to stop and did, with a checkpoint.

    Args:
        message: One line: where it stopped and how to go on; empty where another process says it.
        signal_number: The signal; 0 where another process sets the exit status.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number if signal_number else 0


def nearest_to(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The end of a complaint about an unknown name: `; the nearest is …`, or nothing where none is near.

    Args:
        name: What was given.
        known: What could have been.
        cutoff: How alike the two must be, from 0 to 1.
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; the nearest is {found[0]}" if found else ""
