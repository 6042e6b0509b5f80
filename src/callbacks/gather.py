"""Rows of an evaluation (answers or judged pairs), gathered from all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed
from lightning.pytorch import Trainer

from src.contracts import Batch, PreferenceBatch


@dataclass(frozen=True)
class Prediction:
    """One example and the model's answer.

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

    def cells(self) -> dict[str, Any]:
        """The columns of a row in a sample table."""
        references = "\n".join(self.references)
        return {"id": self.id, "prompt": self.prompt, "references": references, "prediction": self.prediction}

    def text(self) -> str:
        """The row as Markdown."""
        return f"{self.prompt}\n\n**{self.prediction}**"


@dataclass(frozen=True)
class JudgedPair:
    """Two answers to a prompt and a reward model's scores of them.

    Attributes:
        index: The row in its split.
        id: The pair's name.
        prompt: What both answer.
        chosen: The better answer.
        rejected: The other.
        chosen_reward: The reward of `chosen`.
        rejected_reward: The reward of `rejected`.
    """

    index: int
    id: str
    prompt: str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float

    def cells(self) -> dict[str, Any]:
        """The columns of a row in a sample table."""
        return {name: value for name, value in asdict(self).items() if name != "index"}

    def text(self) -> str:
        """The row as Markdown."""
        answers = ((self.chosen_reward, self.chosen), (self.rejected_reward, self.rejected))
        return "\n\n".join([self.prompt, *(f"**{reward:.3f}** {answer}" for reward, answer in answers)])


Row = Prediction | JudgedPair


def rows_of(outputs: Mapping[str, Any], batch: Any) -> Sequence[Row]:
    """One row per example of a batch, without fillers: a JudgedPair if the step returned rewards, else a Prediction."""
    return _pairs_of(outputs, batch) if "chosen_rewards" in outputs else _predictions_of(outputs, batch)


def _pairs_of(outputs: Mapping[str, Any], batch: PreferenceBatch) -> list[JudgedPair]:
    names = ("index", "id", "prompt", "chosen", "rejected")
    columns = [batch[name] for name in names]  # type: ignore[literal-required]
    columns += [outputs["chosen_rewards"], outputs["rejected_rewards"]]
    return [
        JudgedPair(*row)
        for row, is_filler in zip(zip(*columns, strict=True), batch["is_filler"], strict=True)
        if not is_filler
    ]


def _predictions_of(outputs: Mapping[str, Any], batch: Batch) -> list[Prediction]:
    """One Prediction per example of a batch, without fillers."""
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


def gather(rows: Sequence[Row], trainer: Trainer) -> list[Row]:
    """The rows of all processes in the split's order; every process must call this."""
    if trainer.world_size > 1:
        gathered: list[list[Row]] = [[] for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(gathered, list(rows))
        rows = [row for part in gathered for row in part]
    return sorted(rows, key=lambda row: row.index)
