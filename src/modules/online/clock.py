"""How long each phase of an iteration takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseClock:
    """Seconds of each phase of an iteration, under `time/` and its name; a phase that comes again adds to its own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase."""
        self.start()
        yield
        self.stop(name)

    def start(self) -> None:
        """From here on."""
        self._since = time.perf_counter()

    def stop(self, name: str) -> float:
        """Until here; returns the phase's seconds so far."""
        key = f"time/{name}"
        self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - self._since
        return self.seconds[key]
