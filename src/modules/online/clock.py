"""Times the phases of an iteration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PhaseClock:
    """Seconds of each phase of an iteration, as `time/<phase>`; repeated phases are added up.

    Args:
        device: Where the phases compute. A GPU is waited for at the end of a phase, as else its work would count in
            the next one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as a phase."""
        self.start()
        yield
        self.stop(name, is_over=True)

    def start(self) -> None:
        """Start timing."""
        self._since = time.perf_counter()

    def stop(self, name: str, *, is_over: bool) -> float:
        """Stop timing, add the time to a phase, and return the phase's seconds so far.

        Args:
            name: The phase.
            is_over: Whether the phase ends here, and not only a part of it.
        """
        if is_over and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        key = f"time/{name}"
        self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - self._since
        return self.seconds[key]
