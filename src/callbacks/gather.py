"""Rows of an evaluation, collected from all processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed
from lightning.pytorch import Trainer

from src.contracts import Batch


@dataclass(frozen=True)
class Prediction:
    """One example and what the model answered.

    Attributes:
        index: The row in its split.
        id: The example's name.
        prompt: What the model was given.
        references: The right answers.
        prediction: The model's answer.
    """

    index: int
    id: str
    prompt: str
    references: list[str]
    prediction: str


def predictions_of(outputs: Mapping[str, Any], batch: Batch) -> list[Prediction]:
    """A step's outputs beside its batch, fillers left out."""
    return [
        Prediction(index, name, prompt, references, prediction)
        for index, name, prompt, references, prediction, is_filler in zip(
            batch["index"],
            batch["id"],
            batch["prompt"],
            batch["references"],
            outputs["predictions"],
            batch["is_filler"],
            strict=True,
        )
        if not is_filler
    ]


def gather(predictions: list[Prediction], trainer: Trainer) -> list[Prediction]:
    """The predictions of all processes in the split's order; every process must call this."""
    if trainer.world_size > 1:
        gathered: list[list[Prediction]] = [[] for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(gathered, predictions)
        predictions = [prediction for part in gathered for prediction in part]
    return sorted(predictions, key=lambda prediction: prediction.index)
