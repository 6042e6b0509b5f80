"""What PPO estimates the rest of a response's reward with."""

from __future__ import annotations

from torch import Tensor, nn

from src.models.head import in_float32


class ValueHead(nn.Module):
    """One linear layer from the last decoder hidden state to a value, 0 everywhere at the start.

    Args:
        hidden_size: Width of the hidden state.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values in float32: (..., hidden) to (...)."""
        return in_float32(self.linear, hidden).squeeze(-1)
