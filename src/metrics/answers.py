"""What measures generated answers, given in YAML by name: metrics of each answer, and any other of torchmetrics'."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from src.errors import ParleyError

Figures = Mapping[str, Sequence[float]]
_UNIT = 2**40


@dataclass(frozen=True)
class Answer:
    """What is measured.

    Attributes:
        prediction: A generated answer.
        references: The right answers to the prompt, one or more.
        prompt: What is answered.
    """

    prediction: str
    references: Sequence[str]
    prompt: str = ""


class AnswerMetric(Metric, ABC):
    """A metric that each answer has figures of; those of a split are made of its answers', as a rule by their mean.

    docs/metrics.md shows how to write one. A torchmetrics metric whose `update` takes predictions and lists of
    references does as well, with figures of a whole split only.

    Attributes:
        names: The figures that an answer has.
        takes_none: `update` may be called without answers; a process that has none then still has a state to gather.
    """

    is_differentiable = False
    full_state_update = False
    takes_none = True
    names: ClassVar[tuple[str, ...]]
    units: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        # Whole multiples of 2^-40: exact on devices without float64, and summed exactly in any order, so that a split's
        # figures are the same bit for bit over any number of processes.
        self.add_state("units", [], dist_reduce_fx="cat")

    @abstractmethod
    def each(self, answers: Sequence[Answer]) -> list[dict[str, float]]:
        """The figures of each answer, by name.

        Args:
            answers: A batch of them; may be none.
        """

    def summarise(self, figures: Figures) -> dict[str, float]:
        """The figures of a split.

        Args:
            figures: Those of its answers, by name.
        """
        return {name: math.fsum(values) / len(values) if values else math.nan for name, values in figures.items()}

    def compare(self, before: Figures, after: Figures) -> dict[str, float]:  # noqa: ARG002
        """What else is to be said of a split that was answered twice; nothing unless a metric has something to say.

        Args:
            before: The figures of the first answers, by name.
            after: Those of the second answers to the same prompts.
        """
        return {}

    def measure(self, answers: Sequence[Answer]) -> list[dict[str, float]]:
        """As `each`, checked.

        Raises:
            ParleyError: A figure is missing or not finite.
        """
        rows, name = self.each(answers), type(self).__name__
        if len(rows) != len(answers):
            raise ParleyError(f"the metric {name} gave figures of {len(rows)} answers for {len(answers)}.")
        for row, answer in zip(rows, answers, strict=True):
            if set(row) != set(self.names) or not all(map(math.isfinite, row.values())):
                raise ParleyError(
                    f"the metric {name} gave {row} for the answer {answer.prediction[:60]!r}; it must be a finite "
                    f"number for each of: {', '.join(self.names)}."
                )
        return rows

    def update(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        prompts: Sequence[str] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            predictions: Generated answers.
            references: The right answers to each, one or more.
            prompts: What each answers; empty texts when left out.

        Raises:
            ParleyError: A figure is missing or not finite.
            ValueError: There are not as many references as predictions.
        """
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} lists of references")
        prompts = [""] * len(predictions) if prompts is None else prompts
        rows = self.measure([Answer(*fields) for fields in zip(predictions, references, prompts, strict=True)])
        units = [[round(row[name] * _UNIT) for name in self.names] for row in rows]
        self.units.append(torch.tensor(units, dtype=torch.long, device=self.device).reshape(-1, len(self.names)))

    def compute(self) -> dict[str, float]:
        """The figures of the answers of all processes; NaN where there was none."""
        rows = dim_zero_cat(self.units).tolist() if len(self.units) else []
        columns = zip(*rows, strict=True) if rows else [()] * len(self.names)
        return self.summarise(
            {name: [unit / _UNIT for unit in column] for name, column in zip(self.names, columns, strict=True)}
        )


def update_all(
    metrics: MetricCollection,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    prompts: Sequence[str],
) -> None:
    """Add a batch to every metric: the prompts to those that take them, no answers only to those that take none.

    Args:
        metrics: Some of ours, some of torchmetrics'.
        predictions: Generated answers.
        references: The right answers to each.
        prompts: What each answers.
    """
    if predictions:
        metrics.update(predictions, references, prompts=prompts)
        return
    for metric in metrics.values():
        if getattr(metric, "takes_none", False):
            metric.update([], [])


def plain(figures: Mapping[str, Any]) -> dict[str, float]:
    """A metric's figures as numbers."""
    return {name: float(figure) for name, figure in figures.items()}
