"""One loss a token for an optimiser step, however many batches it is cut into."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from src.parallel.gathering import local


class TokenMean:
    """Makes the loss of an optimiser step the mean over all its tokens.

    Lightning averages the mean losses of accumulated batches, so that a token counts for more in a batch with few of
    them, and the gradient depends on how a step is cut (https://huggingface.co/blog/gradient_accumulation). Here each
    batch's sum is divided by the tokens of the step's first batch, since those to come are not known yet, and what
    that is off by is put right in the gradients before they are clipped.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._counts: list[Tensor] = []

    def add(self, loss_sum: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a batch of the step.

        Args:
            loss_sum: Summed over the batch's tokens; a scalar with gradient.
            count: Tokens of the batch, over all processes; a scalar, 0 where all of it is fillers.

        Returns:
            What to go backward from, and the mean over the step's tokens so far.
        """
        self._losses.append(loss_sum.detach())
        self._counts.append(count)
        return loss_sum / self._first, torch.stack(self._losses).sum() / self._total

    @torch.no_grad()
    def settle(self, parameters: Iterable[nn.Parameter], accumulate: int) -> Tensor | None:
        """Turn the accumulated gradients into those of the step's mean, and begin another step.

        Args:
            parameters: Whose gradients are complete, in shards or not.
            accumulate: What Lightning has divided every batch's loss by, in an epoch's last step too.

        Returns:
            The step's mean loss; None where nothing was added.
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

    # A batch of fillers has no token, and must not count as one.

    @property
    def _first(self) -> Tensor:
        return self._counts[0].clamp(min=1)

    @property
    def _total(self) -> Tensor:
        return torch.stack(self._counts).sum().clamp(min=1)
