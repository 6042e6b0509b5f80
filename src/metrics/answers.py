"""The base class of metrics of generated answers, and how they are updated beside other torchmetrics metrics."""

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
    """An answer to be measured.

    Attributes:
        prediction: A generated answer.
        references: The right answers to the prompt, one or more.
        prompt: The prompt that it answers.
    """

    prediction: str
    references: Sequence[str]
    prompt: str = ""


class AnswerMetric(Metric, ABC):
    """A metric that gives figures for each answer; a split's figures are computed from them, by default their means.

    docs/metrics.md shows how to write one. Any torchmetrics metric whose `update` takes predictions and lists of
    references can be used too, but has figures of a whole split only.

    Attributes:
        names: The names of an answer's figures.
        takes_none: Whether `update` may be called without answers, so that a process without any still has a state
            to gather.
    """

    is_differentiable = False
    full_state_update = False
    takes_none = True
    names: ClassVar[tuple[str, ...]]
    units: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        # Integer multiples of 2^-40: exact on devices without float64, and summed exactly in any order, so that the
        # figures of a split are bitwise identical for any number of processes.
        self.add_state("units", [], dist_reduce_fx="cat")

    @abstractmethod
    def each(self, answers: Sequence[Answer]) -> list[dict[str, float]]:
        """The figures of each answer, by name.

        Args:
            answers: A batch of answers; may be empty.

        Returns:
            For each answer a finite figure for every one of `names`.
        """

    def summarise(self, figures: Figures) -> dict[str, float]:
        """The figures of a split; NaN if it has no answers.

        Args:
            figures: The figures of its answers, by name.
        """
        return {name: math.fsum(values) / len(values) if values else math.nan for name, values in figures.items()}

    def compare(self, before: Figures, after: Figures) -> dict[str, float]:  # noqa: ARG002
        """Further figures that compare two sets of answers to the same prompts; empty unless a metric overrides it.

        Args:
            before: The figures of the first answers, by name.
            after: The figures of the second answers, in the same order.
        """
        return {}

    def measure(self, answers: Sequence[Answer]) -> list[dict[str, float]]:
        """As `each`, with a check of its result.

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
            prompts: The prompts; empty texts when left out.

        Raises:
            ParleyError: A figure is missing or not finite.
            ValueError: The numbers of predictions and references differ.
        """
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} lists of references")
        prompts = [""] * len(predictions) if prompts is None else prompts
        rows = self.measure([Answer(*fields) for fields in zip(predictions, references, prompts, strict=True)])
        units = [[round(row[name] * _UNIT) for name in self.names] for row in rows]
        self.units.append(torch.tensor(units, dtype=torch.long, device=self.device).reshape(-1, len(self.names)))

    def compute(self) -> dict[str, float]:
        """The figures over the answers of all processes; NaN if there were none."""
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
    """Add a batch to every metric; an empty one only to metrics with `takes_none`.

    Args:
        metrics: Parley's and other torchmetrics metrics; prompts are passed to those whose `update` takes them.
        predictions: Generated answers.
        references: The right answers to each.
        prompts: The prompts that they answer.
    """
    if predictions:
        metrics.update(predictions, references, prompts=prompts)
        return
    for metric in metrics.values():
        if getattr(metric, "takes_none", False):
            metric.update([], [])


def plain(figures: Mapping[str, Any]) -> dict[str, float]:
    """A metric's figures as Python floats."""
    return {name: float(figure) for name, figure in figures.items()}
