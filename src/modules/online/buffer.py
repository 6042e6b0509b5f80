"""Splits an iteration's rollout into minibatches, the same for any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from src.rl.rollout import Rollout

Unit = Literal["tokens", "responses", "rollout"]
"""What a loss averages over: a minibatch's tokens, its responses, or the mean tokens per minibatch of the rollout."""


@dataclass(frozen=True)
class Minibatch:
    """The responses of one training step.

    Attributes:
        rollout: The responses; if none are left for this process, one with an empty mask, which has no gradient.
        rows: (batch,) their rows in the iteration's rollout.
        weight: The factor of the loss that makes an optimiser step independent of how it is split into processes and
            accumulated minibatches.
        is_idle: Whether no minibatch of the optimiser step has a response token, as happens for batches of few prompts.
        tokens_per_minibatch: Response tokens of the rollout, divided by the number of its minibatches on all processes.
    """

    rollout: Rollout
    rows: Tensor
    weight: float
    is_idle: bool
    tokens_per_minibatch: float


class RolloutBuffer:
    """Splits the rollout of all processes into minibatches, the same ones in the same order on any number of them.

    Every process holds the whole rollout. A pass shuffles it and cuts it into `minibatches * world_size` shares of
    (nearly) equal size; a process's k-th minibatch is share `k * world_size + rank`.

    Args:
        seed: The seed of the shuffling.

    Attributes:
        iteration: Iterations begun so far.
        place: Minibatches taken in the current iteration.
        rollout: The current iteration's rollout; None between iterations.
        stops_at: The place from which on the rest of the rollout is skipped; None for no skipping.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.iteration = 0
        self.place = 0
        self.rollout: Rollout | None = None
        self.stops_at: int | None = None

    def fill(self, rollout: Rollout) -> None:
        """Begin an iteration with a new rollout."""
        self.rollout, self.place, self.stops_at = rollout, 0, None
        self.iteration += 1

    def stop(self) -> None:
        """Skip the rest of this rollout."""
        self.stops_at = self.place

    @property
    def is_over(self) -> bool:
        """Whether the next minibatch is to be skipped."""
        return self.stops_at is not None and self.place >= self.stops_at

    def next(
        self, *, minibatches: int, unit: Unit, rank: int = 0, world_size: int = 1, accumulate: int = 1
    ) -> Minibatch:
        """The next minibatch of this process.

        Args:
            minibatches: Minibatches in a pass, on each process.
            unit: What the loss averages over.
            rank: This process's rank.
            world_size: The number of processes.
            accumulate: Minibatches in an optimiser step, on each process.
        """
        assert self.rollout is not None, "an iteration must have begun"
        index, turn = divmod(self.place, minibatches)
        shares = self._order(index).tensor_split(minibatches * world_size)
        rows = shares[turn * world_size + rank]
        first = turn // accumulate * accumulate * world_size
        step = shares[first : first + accumulate * world_size]
        tokens = self.rollout.response_mask.sum(-1)
        self.place += 1
        return Minibatch(
            self.rollout.select(rows) if len(rows) else self.rollout.select(torch.zeros(1, dtype=torch.long)).empty(),
            rows if len(rows) else torch.zeros(1, dtype=torch.long),
            _weight(rows, step, tokens, unit),
            not tokens[torch.cat(step)].any(),
            float(tokens.sum()) / len(shares),
        )

    def _order(self, index: int) -> Tensor:
        """The order of the rollout's rows in a pass; the same on every process."""
        assert self.rollout is not None
        seed = (self.seed * 1_000_003 + self.iteration * 65_537 + index) % 2**63
        return torch.randperm(len(self.rollout), generator=torch.Generator().manual_seed(seed))

    def ended(self, minibatches: int) -> bool:
        """Whether the next training step begins an iteration.

        Args:
            minibatches: Minibatches in an iteration, on each process.
        """
        return self.rollout is None or self.place >= minibatches

    def is_of(self, index: Sequence[int], num_generations: int) -> bool:
        """Whether the rollout consists of `num_generations` answers to each of these prompts.

        Args:
            index: The rows of all prompts in their split.
            num_generations: Responses per prompt.
        """
        assert self.rollout is not None
        return self.rollout.index.tolist() == [row for row in index for _ in range(num_generations)]

    def state_dict(self, minibatches: int) -> dict[str, Any]:
        """The state for a checkpoint, including the rollout if it has minibatches left.

        Args:
            minibatches: Minibatches in an iteration, on each process.
        """
        rollout = None if self.ended(minibatches) or self.rollout is None else self.rollout.state_dict()
        return {
            "seed": self.seed,
            "iteration": self.iteration,
            "place": self.place,
            "minibatches": minibatches,
            "stops_at": self.stops_at,
            "rollout": rollout,
        }

    def load_state_dict(self, state: dict[str, Any], minibatches: int) -> None:
        """Restore a state, also one of another number of processes.

        If its place is between two minibatches of this run, the rest of the iteration is left out, as in the prompts'
        data loader.

        Args:
            state: What `state_dict` returned.
            minibatches: Minibatches in an iteration of this run, on each process.
        """
        self.seed, self.iteration = state["seed"], state["iteration"]
        self.place, rest = divmod(state["place"] * minibatches, state["minibatches"])
        stops_at = state["stops_at"]
        self.stops_at = None if stops_at is None else stops_at * minibatches // state["minibatches"]
        self.rollout = None
        if state["rollout"] is not None and not rest:
            self.rollout = Rollout.from_state_dict(state["rollout"])


def _weight(rows: Tensor, step: Sequence[Tensor], tokens: Tensor, unit: Unit) -> float:
    if unit == "rollout":
        return 1.0
    if unit == "responses":
        return len(rows) * len(step) / max(1, sum(map(len, step)))
    whole = float(tokens[torch.cat(list(step))].sum())
    return float(tokens[rows].sum()) * len(step) / max(1.0, whole)
