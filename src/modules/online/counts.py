"""How much of an online method's models is trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from src.models.lora import ParameterCount, count_parameters
from src.models.reference import Reference
from src.models.responses import Model


@dataclass(frozen=True)
class OnlineParameterCount(ParameterCount):
    """Parameters of the policy and what is trained beside it, with those of the reference beside them."""

    reference: ParameterCount

    @classmethod
    def of(cls, model: Model, beside: nn.Module | None, reference: Reference) -> OnlineParameterCount:
        """Count them.

        Args:
            model: The policy.
            beside: What is trained with it.
            reference: What it is held to.
        """
        counts = [count_parameters(part) for part in (model, beside) if part is not None]
        trainable, total = sum(count.trainable for count in counts), sum(count.total for count in counts)
        return cls(trainable, total, reference=reference.parameter_count(model))

    def __str__(self) -> str:
        return f"policy and value head: {super().__str__()}; reference: {self.reference}"
