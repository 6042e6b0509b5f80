"""Metrics of validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection

from src.metrics.answers import plain, update_all


class EvaluationMetrics:
    """Loss and perplexity per token, and the metrics of answers, over a whole split and all processes.

    This is not a torch module, so that a metric's classifier is neither trained nor saved in checkpoints.

    Args:
        metrics: Metrics of answers, by name.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.loss = MeanMetric()
        self.answers = MetricCollection(dict(metrics), compute_groups=False)

    def to(self, device: torch.device) -> None:
        """Move the metrics to a device."""
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
            count: The number of these tokens; 0 for a batch of fillers.
            predictions: Generated answers, fillers left out.
            references: The right answers to each.
            prompts: The prompts that they answer.
        """
        if count:
            self.loss.update(loss_sum / count, weight=count)
        update_all(self.answers, predictions, references, prompts)

    def compute(self, stage: str) -> dict[str, Tensor | float]:
        """The metrics under a stage's name: `val/loss`, `val/perplexity`, `val/rouge1` and so on.

        Perplexity is the exponential of the mean loss per token.
        """
        loss = self.loss.compute()
        figures: dict[str, Tensor | float] = {"loss": loss, "perplexity": loss.exp(), **plain(self.answers.compute())}
        return {f"{stage}/{name}": figure for name, figure in figures.items()}

    def reset(self) -> None:
        """Reset the metrics."""
        self.loss.reset()
        self.answers.reset()
