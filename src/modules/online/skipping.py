"""Counts updates that are skipped because a value is not finite."""

from __future__ import annotations

import logging
from typing import Any

from src.errors import ParleyError

log = logging.getLogger(__name__)


class SkippedUpdates:
    """Counts skipped updates, and ends the run after too many in a row.

    Args:
        most: The number in a row that ends the run.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.total = 0
        self.in_a_row = 0

    def skip(self, iteration: int, why: str) -> None:
        """Count a skipped update; every process must call this, or none.

        Args:
            iteration: The rollout's iteration, for the log.
            why: The reason, for the log.

        Raises:
            ParleyError: Too many updates in a row were skipped.
        """
        self.total += 1
        self.in_a_row += 1
        log.warning("Iteration %d: update skipped: %s.", iteration, why)
        if self.in_a_row >= self.most:
            raise ParleyError(
                f"{self.in_a_row} updates in a row were skipped, the last because {why}; go on from an earlier "
                "checkpoint with a lower learning rate, or look at what the reward returns."
            )

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: the total, and the number in a row."""
        return {"skipped_updates": self.total, "skipped_in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned; other keys are ignored."""
        self.total, self.in_a_row = state["skipped_updates"], state["skipped_in_a_row"]
