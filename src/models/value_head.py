"""PPO's value head, which predicts the rest of a response's reward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from src.errors import ParleyError
from src.models.head import in_float32
from src.models.sources import locate, quietly, reading


class ValueHead(nn.Module):
    """Maps decoder hidden states to values: one linear layer, or the layers of a reward model's head.

    Args:
        hidden_size: Width of the hidden state.
        init: `zero`: all weights 0; `random`: weights of standard deviation 1 / sqrt(hidden_size + 1), as OpenAI's
            lm-human-preferences initialises its reward head
            (https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo); otherwise the directory or hub
            name of a reward model, a sequence classifier with one output, whose head is copied.

    Raises:
        ParleyError: There is no such reward model, or its head does not fit.
    """

    def __init__(self, hidden_size: int, init: str = "zero") -> None:
        super().__init__()
        if init in ("zero", "random"):
            linear = nn.Linear(hidden_size, 1)
            nn.init.zeros_(linear.bias)
            nn.init.normal_(linear.weight, std=0.0 if init == "zero" else (hidden_size + 1) ** -0.5)
            self.layers = nn.Sequential(linear)
        else:
            self.layers = _head_of(init, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values in float32: (..., hidden) to (...)."""
        return in_float32(self.layers, hidden).squeeze(-1)


def _head_of(name: str, hidden_size: int) -> nn.Sequential:
    """The layers of a reward model's head, without dropout."""
    where, local_only = locate(name)
    with reading("the reward model", name), quietly():
        model = AutoModelForSequenceClassification.from_pretrained(
            where, dtype=torch.float32, local_files_only=local_only, trust_remote_code=False
        )
    head: Any = getattr(model, "score", None) or getattr(model, "classification_head", None)
    layers: list[Any] = [head] if isinstance(head, nn.Linear) else []
    if hasattr(head, "dense") and hasattr(head, "out_proj"):  # as in T5's and BART's classifiers
        layers = [head.dense, nn.Tanh(), head.out_proj]
    sizes = (layers[0].in_features, layers[-1].out_features) if layers else (0, 0)
    if sizes != (hidden_size, 1):
        raise ParleyError(
            f"the head of the reward model {name!r} cannot start the value head: it takes {sizes[0]} features to "
            f"{sizes[1]} outputs where the policy needs {hidden_size} to 1; give a reward model of the policy's kind."
        )
    return nn.Sequential(*layers).requires_grad_(True)
