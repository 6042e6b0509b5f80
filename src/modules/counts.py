"""Parameter counts of a policy and its reference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from src.models.lora import ParameterCount, count_parameters
from src.models.reference import Reference
from src.models.responses import Model


@dataclass(frozen=True)
class PolicyParameterCount(ParameterCount):
    """Parameters of the policy with its value head, and those of the reference."""

    reference: ParameterCount | None
    beside: str = ""

    @classmethod
    def of(cls, model: Model, beside: nn.Module | None, reference: Reference | None) -> PolicyParameterCount:
        """Count them.

        Args:
            model: The policy.
            beside: A value head that is trained too; None without one.
            reference: The reference; None if none is in memory.
        """
        counts = [count_parameters(part) for part in (model, beside) if part is not None]
        trainable, total = sum(count.trainable for count in counts), sum(count.total for count in counts)
        kept = None if reference is None else reference.parameter_count(model)
        return cls(trainable, total, reference=kept, beside="" if beside is None else " and value head")

    def __str__(self) -> str:
        kept = "not kept" if self.reference is None else self.reference
        return f"policy{self.beside}: {super().__str__()}; reference: {kept}"
