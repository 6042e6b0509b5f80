"""A case, what its answer must be, and whether it was."""

from __future__ import annotations

import re
from dataclasses import dataclass

from scripts.trial.tools.forks import Answer

LONGEST_LINE = 600  # characters; what is longer is nobody's one line


@dataclass(frozen=True)
class Case:
    """Words for the command, and how it must answer.

    Attributes:
        kind: What kind of input; each kind has cases that must be accepted.
        name: What is wrong.
        words: What follows `parley`.
        said: What the line must name: a regular expression.
        accepted: Whether the input is good, and must be taken.
        given: Standard input.
    """

    kind: str
    name: str
    words: tuple[str, ...]
    said: str = ""
    accepted: bool = False
    given: bytes = b""

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def what_is_wrong(case: Case, answer: Answer) -> str:
    """What an answer lacks; empty where nothing.

    A bad input gets status 2 and one line, which begins with the command's name, is the last, names what is wrong and
    is no traceback. A good one gets status 0.
    """
    lines = answer.err.strip().splitlines() or [""]
    mine = [line for line in lines if line.startswith(f"parley {case.words[0]}: ")]
    shown = f"{lines[-1][:200]!r}"
    if answer.status is None:
        return "hangs"
    if "Traceback (most recent call last)" in answer.err:
        return f"a traceback that ends {shown}"
    if case.accepted:
        return "" if answer.status == 0 else f"is refused with status {answer.status}: {shown}"
    if answer.status != 2:
        return f"{'ends with' if answer.status else 'is accepted,'} status {answer.status}: {shown}"
    if len(mine) != 1 or mine[0] != lines[-1]:
        return f"{len(mine)} lines of the command's own, the last line is {shown}"
    if len(mine[0]) > LONGEST_LINE:
        return f"a line of {len(mine[0])} characters: {shown}"
    if not re.search(case.said, mine[0]):
        return f"does not say {case.said!r}: {mine[0][:300]!r}"
    return ""
