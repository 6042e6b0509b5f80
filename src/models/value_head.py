"""What PPO estimates the rest of a response's reward with."""

from __future__ import annotations

from torch import Tensor, nn

from src.models.head import in_float32
from src.rl.config import ValueHeadInit


class ValueHead(nn.Module):
    """One linear layer from the last decoder hidden state to a value.

    Args:
        hidden_size: Width of the hidden state.
        init: `zero`: 0 everywhere; `random`: weights of standard deviation 1 / sqrt(hidden_size + 1), as OpenAI's
            lm-human-preferences gives to its reward head
            (https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo).
    """

    def __init__(self, hidden_size: int, init: ValueHeadInit = "zero") -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.bias)
        nn.init.normal_(self.linear.weight, std=0.0 if init == "zero" else (hidden_size + 1) ** -0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values in float32: (..., hidden) to (...)."""
        return in_float32(self.linear, hidden).squeeze(-1)
