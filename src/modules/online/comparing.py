"""Validation and test of what learns online: the policy's answers beside its reference's."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from src.contracts import Batch
from src.models.reference import Reference
from src.modules.base import ModelModule
from src.modules.online.collector import Collector
from src.modules.online.evaluation import Comparison, Evaluator, gather, summarise


class ComparingModule(ModelModule):
    """A Module that answers every prompt of validation and test twice: as it is, and as it was.

    Attributes:
        comparisons: Of the split that was last gone through, in its order.
    """

    reference: Reference
    collector: Collector
    evaluator: Evaluator
    comparisons: list[Comparison]

    @property
    @abstractmethod
    def seed(self) -> int:
        """The run's: of sampled answers."""

    def _compare(self, batch: Batch) -> dict[str, Any]:
        shared = self.collector.encode(batch) if self.collector.encoder_is_frozen else None
        rows = self.evaluator.compare(
            batch, self.policy, self.reference, self.tokenizer, self.generation, shared, self.seed
        )
        self.comparisons += rows
        answers = iter(rows)
        return {"predictions": ["" if filler else next(answers).response_after for filler in batch["is_filler"]]}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Answers of policy and reference to the same prompts, with the same seeds."""
        return self._compare(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """As in validation."""
        return self._compare(batch)

    def on_validation_epoch_start(self) -> None:
        """Start anew."""
        self.comparisons = []

    def on_test_epoch_start(self) -> None:
        """Start anew."""
        self.comparisons = []

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole split."""
        self.comparisons = gather(self.comparisons, self.trainer)
        self.log_dict(summarise(self.comparisons, "val"))

    def on_test_epoch_end(self) -> None:
        """Log the figures of the whole split."""
        self.comparisons = gather(self.comparisons, self.trainer)
        self.log_dict(summarise(self.comparisons, "test"))
