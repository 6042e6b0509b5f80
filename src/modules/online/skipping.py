"""Updates that are left out because a figure is not finite."""

from __future__ import annotations

import logging
from typing import Any

from src.errors import ParleyError

log = logging.getLogger(__name__)


class SkippedUpdates:
    """Counts them, and ends the run after so many in a row.

    Args:
        most: In a row.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.total = 0
        self.in_a_row = 0

    def skip(self, iteration: int, why: str) -> None:
        """Count an update that is left out; every process comes here or none does.

        Args:
            iteration: Of the rollout, for the log.
            why: What is not finite.

        Raises:
            ParleyError: Too many in a row.
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
        """Both counts."""
        return {"skipped_updates": self.total, "skipped_in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, whatever else is in it."""
        self.total, self.in_a_row = state["skipped_updates"], state["skipped_in_a_row"]
