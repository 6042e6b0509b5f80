"""The mean loss per token over an optimiser step, independent of how it is split into batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from src.parallel.gathering import local


class TokenMean:
    """Makes the loss of an optimiser step the mean over all its tokens.

    Lightning averages the mean losses of accumulated batches, so that a token counts for more in a batch with few of
    them, and the gradient depends on how a step is split (https://huggingface.co/blog/gradient_accumulation). Here each
    batch's sum is divided by the tokens of the step's first batch, since the total is not known yet, and the gradients
    are rescaled to the total before they are clipped.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._counts: list[Tensor] = []

    def add(self, loss_sum: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch of the step.

        Args:
            loss_sum: Summed over the batch's tokens; a scalar with gradient.
            count: Tokens of the batch, over all processes; a scalar, 0 for a batch of fillers.

        Returns:
            The loss to call `backward` on, and the mean over the step's tokens so far.
        """
        self._losses.append(loss_sum.detach())
        self._counts.append(count)
        return loss_sum / self._first, torch.stack(self._losses).sum() / self._total

    @torch.no_grad()
    def settle(self, parameters: Iterable[nn.Parameter], accumulate: int) -> Tensor | None:
        """Rescale the accumulated gradients to those of the step's mean, and start a new step.

        Args:
            parameters: The parameters, whose gradients are complete; sharded or not.
            accumulate: The number that Lightning has divided every batch's loss by, also in an epoch's last step.

        Returns:
            The step's mean loss; None if no batch was added.
        """
        if not self._counts:
            return None
        mean = torch.stack(self._losses).sum() / self._total
        if accumulate > 1:
            factor = self._first * accumulate / self._total
            for parameter in parameters:
                if parameter.grad is not None:
                    local(parameter.grad).mul_(factor)
        self._losses, self._counts = [], []
        return mean

    # A batch of fillers has 0 tokens, which must not be divided by.

    @property
    def _first(self) -> Tensor:
        return self._counts[0].clamp(min=1)

    @property
    def _total(self) -> Tensor:
        return torch.stack(self._counts).sum().clamp(min=1)
