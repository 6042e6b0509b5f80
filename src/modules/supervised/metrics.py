"""What validation and test measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection

from src.metrics.answers import plain, update_all


class EvaluationMetrics:
    """Loss and perplexity by token, and the metrics of answers, over a whole split and all processes.

    No torch module, so that what a metric holds (a classifier) is neither trained nor in checkpoints.

    Args:
        metrics: Of answers, by name.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.loss = MeanMetric()
        self.answers = MetricCollection(dict(metrics), compute_groups=False)

    def to(self, device: torch.device) -> None:
        """Compute on this device from now on."""
        self.loss.to(device)
        self.answers.to(device)

    def update(
        self,
        loss_sum: Tensor,
        count: Tensor,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        prompts: Sequence[str],
    ) -> None:
        """Add a batch.

        Args:
            loss_sum: Cross-entropy summed over the batch's tokens.
            count: How many tokens those are; 0 for a batch of fillers.
            predictions: Generated answers, fillers left out.
            references: The right answers to each.
            prompts: What each answers.
        """
        if count:
            self.loss.update(loss_sum / count, weight=count)
        update_all(self.answers, predictions, references, prompts)

    def compute(self, stage: str) -> dict[str, Tensor | float]:
        """The figures under a stage's name, `val/loss`, `val/perplexity`, `val/rouge1` and so on.

        Perplexity is the exponential of the mean loss of a token: how many tokens the model hesitates between.
        """
        loss = self.loss.compute()
        figures: dict[str, Tensor | float] = {"loss": loss, "perplexity": loss.exp(), **plain(self.answers.compute())}
        return {f"{stage}/{name}": figure for name, figure in figures.items()}

    def reset(self) -> None:
        """Start anew."""
        self.loss.reset()
        self.answers.reset()
