"""What Parley must stand: bad inputs, signals, kills, odd files, full disks. Each part is a module with a `main`.

    python -m scripts.trial                      # all parts
    python -m scripts.trial bad_inputs signals   # these

A part's `main` takes the words that follow its name and returns what came of each of its cases; helpers of several
parts are in packages beside it. The exit status is 1 unless every case of every part held.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Attributes:
        case: What was tried, in words that let it be tried again.
        held: Whether Parley did what it must.
        said: What it did instead, for a case that did not hold.
    """

    case: str
    held: bool
    said: str = ""
