"""Damaged checkpoints before every command that reads one, and odd files where a run looks for its own.

python -m scripts.trial odd_files                     # 300 flips for each of five commands, then the odd files
python -m scripts.trial odd_files --flips 30 --only generate
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from scripts.trial import Outcome
from scripts.trial.surroundings.flips import COMMANDS, flip_cases
from scripts.trial.surroundings.odd import odd_cases
from scripts.trial.surroundings.run import make_run
from scripts.trial.tools.part import collect, options_of, workplace


def main(words: Sequence[str]) -> list[Outcome]:
    parser = options_of("odd_files", __doc__, only=f"commands among {', '.join(COMMANDS)}, and odd,")
    parser.add_argument("--flips", type=int, default=300, metavar="N", help="for each command (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the flips (0)")
    given = parser.parse_args(words)
    only = tuple(given.only)
    with workplace() as place:
        run = make_run(place / "whole")
        commands = [name for name in COMMANDS if name.startswith(only)]
        flips = flip_cases(run, place / "flips", given.flips, given.seed, commands)
        odd = odd_cases(run, place / "odd") if "odd".startswith(only) else ()
        return collect(chain(flips, odd), verbose=given.verbose)
