"""Methods that take turns, so that what the machine does meanwhile falls on all of them."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from src.errors import ParleyError

T = TypeVar("T")


def chosen(methods: dict[str, Callable[[], T]], names: Sequence[str] | None) -> dict[str, Callable[[], T]]:
    """The methods of some names, in their order; all of them where None is given.

    Raises:
        ParleyError: There is no method of a name.
    """
    if names is None:
        return methods
    for name in names:
        if name not in methods:
            raise ParleyError(f"there is no method {name!r}; choose among: {'; '.join(methods)}.")
    return {name: methods[name] for name in names}


@dataclass
class Turns(Generic[T]):
    """Runs methods round by round, each round beginning with another.

    Attributes:
        methods: By name, in the order of the table; those that are left out are taken from it.
        is_peer: Whether a method is another library's: one that cannot run here is left out, with a line.
        left_out: Those, with their reasons.
    """

    methods: dict[str, Callable[[], T]]
    is_peer: Callable[[str], bool]
    left_out: list[str] = field(default_factory=list)

    def play(self, rounds: int) -> list[dict[str, T]]:
        """Run every method in every round.

        Returns:
            By round, what each method gave; only of methods that gave something in every round, in the table's order.
        """
        played: list[dict[str, T]] = []
        for number in range(rounds):
            names = [*self.methods]
            start = number % len(names)
            found: dict[str, T] = {}
            for name in names[start:] + names[:start]:
                gc.collect()  # models of the one before, whose parts refer to each other
                began = time.perf_counter()
                try:
                    found[name] = self.methods[name]()
                except Exception as error:
                    if not self.is_peer(name):
                        raise
                    self.leave_out(name, error)
                else:
                    seconds = time.perf_counter() - began
                    print(f"{name}, turn {number + 1} of {rounds}: {seconds:.1f} s", file=sys.stderr, flush=True)
            played.append(found)
        return [{name: found[name] for name in self.methods} for found in played]

    def leave_out(self, name: str, error: Exception) -> None:
        """Go on without a method."""
        said = [line for line in str(error).splitlines() if line.strip()]
        self.left_out.append(f"{name}: {type(error).__name__}{f': {said[0].strip()[:300]}' if said else ''}")
        print(f"left out: {self.left_out[-1]}", file=sys.stderr, flush=True)
        del self.methods[name]
