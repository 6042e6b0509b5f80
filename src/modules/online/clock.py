"""Times the phases of an iteration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseClock:
    """Seconds of each phase of an iteration, as `time/<phase>`; repeated phases are added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as a phase."""
        self.start()
        yield
        self.stop(name)

    def start(self) -> None:
        """Start timing."""
        self._since = time.perf_counter()

    def stop(self, name: str) -> float:
        """Stop timing, add the time to a phase, and return the phase's seconds so far."""
        key = f"time/{name}"
        self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - self._since
        return self.seconds[key]
