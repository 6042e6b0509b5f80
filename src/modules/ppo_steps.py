"""The parts of an iteration of PPO that need no Module."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from src.contracts import IGNORE_INDEX
from src.models.lora import ParameterCount, count_parameters
from src.models.reference import Reference
from src.models.responses import Model, output_head, response_states
from src.models.value_head import ValueHead
from src.rl.drawable import Drawable
from src.rl.logprobs import logprobs_from_hidden
from src.rl.masked import Reduce
from src.rl.rollout import Rollout


class TokenFigures(NamedTuple):
    """What a model says about responses, each of shape (batch, time), float32.

    Attributes:
        logprobs: Of the tokens.
        entropy: Of the distribution at each token.
        values: Of the value head; zeros without one.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


def score_tokens(
    model: Model,
    query_ids: Tensor,
    query_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    encoder_hidden: Tensor | None = None,
    *,
    drawable: Drawable | None = None,
    temperature: float = 1.0,
    value_head: ValueHead | None = None,
    entropy_requires_grad: bool = False,
) -> TokenFigures:
    """Log-probabilities, entropies and values of responses that are there already.

    Args:
        model: Policy or reference.
        query_ids: (batch, query time).
        query_mask: (batch, query time).
        response_ids: (batch, time).
        response_mask: (batch, time).
        encoder_hidden: The encoder's output, where it is known.
        drawable: What could be drawn at each place; everything when left out.
        temperature: The one that responses are sampled at.
        value_head: The policy's.
        entropy_requires_grad: Let gradient through the entropy.
    """
    states = response_states(model, query_ids, query_mask, response_ids, response_mask, encoder_hidden)
    labels = response_ids.masked_fill(response_mask == 0, IGNORE_INDEX)
    logprobs, entropy = logprobs_from_hidden(
        states.head_input,
        labels,
        output_head(model),
        drawable=drawable,
        temperature=temperature,
        entropy_requires_grad=entropy_requires_grad,
    )
    values = torch.zeros_like(logprobs) if value_head is None else value_head(states.last_hidden)
    return TokenFigures(logprobs, entropy, values)


@dataclass(frozen=True)
class Minibatch:
    """What one forward and backward pass learns from.

    Attributes:
        rollout: Some responses.
        encoder_hidden: The encoder's output for their queries, where it never changes.
        weight: What the loss, a mean over tokens, is multiplied with, so that the mean over processes is one too.
    """

    rollout: Rollout
    encoder_hidden: Tensor | None
    weight: float


def minibatches(
    rollout: Rollout,
    rows: Tensor,
    size: int,
    generator: torch.Generator,
    encoder_hidden: Tensor | None,
    trainer: Trainer,
) -> list[Minibatch]:
    """Cut a rollout into shuffled minibatches, as many on every process.

    A process that has fewer responses than others cuts them finer; one that has none left takes part with a response
    whose mask is empty, which has no gradient.

    Args:
        rollout: This process's responses.
        rows: (real responses,) those that are not fillers.
        size: Responses in a minibatch at most.
        generator: Draws the order, on the rollout's device.
        encoder_hidden: The encoder's output for all queries, where it never changes.
        trainer: Knows the other processes.
    """
    count = max(1, -(-len(rows) // size))
    if trainer.world_size > 1:
        count = int(trainer.strategy.reduce(torch.tensor(count, device=rows.device), reduce_op="max"))
    order = rows[torch.randperm(len(rows), generator=generator, device=rows.device)]
    parts = order.tensor_split(count)
    sizes, reduce = torch.stack([rollout.response_mask[part].sum().float() for part in parts]), sum_over(trainer)
    totals = sizes if reduce is None else reduce(sizes)
    weights = (sizes * trainer.world_size / totals.clamp(min=1)).tolist()
    return [_minibatch(rollout, part, encoder_hidden, weight) for part, weight in zip(parts, weights, strict=True)]


def _minibatch(rollout: Rollout, rows: Tensor, encoder_hidden: Tensor | None, weight: float) -> Minibatch:
    taken = rows if len(rows) else torch.zeros(1, dtype=torch.long, device=rows.device)
    chosen = rollout.select(taken)
    if not len(rows):
        chosen = replace(chosen, response_mask=torch.zeros_like(chosen.response_mask))
    if encoder_hidden is not None:  # an encoder's queries are padded on the right
        encoder_hidden = encoder_hidden[taken, : chosen.query_ids.shape[1]]
    return Minibatch(chosen, encoder_hidden, weight)


@dataclass(frozen=True)
class PPOParameterCount(ParameterCount):
    """Parameters of policy and value head, with those of the reference beside them."""

    reference: ParameterCount

    @classmethod
    def of(cls, model: Model, value_head: ValueHead, reference: Reference) -> PPOParameterCount:
        """Count them."""
        policy, head = count_parameters(model), count_parameters(value_head)
        return cls(
            policy.trainable + head.trainable, policy.total + head.total, reference=reference.parameter_count(model)
        )

    def __str__(self) -> str:
        return f"policy and value head: {super().__str__()}; reference: {self.reference}"


class PhaseClock:
    """How long each phase of an iteration takes."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase."""
        start = time.perf_counter()
        yield
        self._seconds[f"time/{name}"] = time.perf_counter() - start

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def stats(self) -> dict[str, float]:
        """Seconds of each phase, and of all."""
        return self._seconds | {"time/total": self.total}


def seeded(device: torch.device, seed: int, iteration: int, rank: int) -> torch.Generator:
    """Of the order in which one process learns in an iteration: the same whether or not the run was stopped before."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + iteration * 65_537 + rank) % 2**63)


def sum_over(trainer: Trainer) -> Reduce | None:
    """Sums a tensor over all processes; None where there is but one."""
    if trainer.world_size == 1:
        return None
    return lambda tensor: trainer.strategy.reduce(tensor.clone(), reduce_op="sum")


def agree(holds: bool, trainer: Trainer) -> bool:
    """Whether it holds on every process."""
    reduce = sum_over(trainer)
    if reduce is None:
        return holds
    return float(reduce(torch.tensor(float(not holds), device=trainer.strategy.root_device))) == 0
