"""Batches of similar length, the same ones in the same order for any number of processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch.utils.data import Sampler

from src.errors import ParleyError

SAMPLE_SEED = 0  # fixed, so that every run evaluates the same sample


class DealtBatchSampler(Sampler[list[int]]):
    """Deals each global batch, that of an optimiser step, to all processes.

    It is dealt into `world_size * accumulate` shares, card by card: a process's k-th batch of a step is share
    `k * world_size + rank`. So what a step learns from depends on the seed, the epoch and the number of shares only,
    and a run continued on half the processes with twice the accumulation has the same shares. Where a global batch is
    too small to go round, a process gets a filler instead of nothing: the index `-1 - i`, which stands for example `i`
    with nothing to learn from and nothing to count. No example is ever repeated or dropped.

    Args:
        seed: Seed of the shuffling.
        rank: This process's rank.
        world_size: The number of processes.
        accumulate: Batches per optimiser step, on each process.
        uses: How many times in a row each batch is repeated.
    """

    def __init__(
        self, *, seed: int = 0, rank: int = 0, world_size: int = 1, accumulate: int = 1, uses: int = 1
    ) -> None:
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate
        self.uses = uses
        self.epoch = 0
        self.start_batch = 0

    @property
    @abstractmethod
    def steps(self) -> int:
        """Global batches of an epoch."""

    @abstractmethod
    def batches_from(self, step: int) -> Iterator[list[int]]:
        """This epoch's global batches, from one of them on."""

    @property
    def sampler(self) -> DealtBatchSampler:
        """The sampler itself: Lightning calls `set_epoch` on `batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch; a new one starts at its first batch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.start_batch = 0

    @property
    def shares(self) -> int:
        """Parts that a global batch is dealt in."""
        return self.world_size * self.accumulate

    def __len__(self) -> int:
        return self.steps * self.accumulate * self.uses

    def __iter__(self) -> Iterator[list[int]]:
        turns = self.accumulate * self.uses
        step, turn = divmod(self.start_batch, turns)
        for batch in self.batches_from(step):
            for number in range(turn, turns):
                share = number // self.uses * self.world_size + self.rank
                yield batch[share :: self.shares] or [-1 - batch[0]]
            turn = 0


class LengthGroupedBatchSampler(DealtBatchSampler):
    """Cuts a dataset into global batches of similar length.

    Lengths are rounded up to buckets some 6 % wide. Every epoch shuffles the examples inside each bucket, cuts
    the ordered examples at fixed positions, and shuffles the batches. As the positions depend on the bucketed lengths
    alone, every epoch has the same number of batches and a token budget holds in each.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples in a share. Ignored if `max_tokens` is given.
        max_tokens: The token budget of a share, instead of a number of examples: the longest example's length times
            their number stays within it.
        shuffle: Shuffle anew every epoch; otherwise batches come longest first, so that running out of memory shows at
            once.
        group_by_length: Form batches of similar length; otherwise examples come as shuffled (or as they are).
        **dealing: As for `DealtBatchSampler`.

    Attributes:
        sample_batches: The number of global batches that will be used, if not all: without shuffling, these then hold a
            random sample that does not depend on the seed; more batches or processes use the same examples and more.

    Raises:
        ParleyError: An example is longer than the token budget, or a size is not positive.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int = 8,
        max_tokens: int | None = None,
        shuffle: bool = False,
        group_by_length: bool = True,
        **dealing: int,
    ) -> None:
        super().__init__(**dealing)
        if batch_size < 1 or (max_tokens is not None and max_tokens < 1):
            raise ParleyError(f"batch_size ({batch_size}) and max_tokens ({max_tokens}) must be positive.")
        self.lengths = torch.as_tensor(lengths, dtype=torch.long)
        if max_tokens is not None and len(lengths) and int(self.lengths.max()) > max_tokens:
            raise ParleyError(
                f"max_tokens_per_batch is {max_tokens}, but the longest example has {int(self.lengths.max())} tokens; "
                "raise it, or lower max_source_length."
            )
        self.shuffle = shuffle
        self.group_by_length = group_by_length
        self.sample_batches: int | None = None
        self._keys = bucket(self.lengths) if group_by_length else torch.zeros_like(self.lengths)
        if max_tokens is None:
            step = batch_size * self.shares
            self._cuts = [*range(0, len(lengths), step), len(lengths)]
        else:
            self._cuts = self._cut_by_tokens(max_tokens)

    @property
    def steps(self) -> int:
        """The number of global batches in an epoch."""
        return len(self._cuts) - 1

    def batches_from(self, step: int) -> Iterator[list[int]]:
        """This epoch's global batches, from one of them on."""
        return iter(self.global_batches()[step:])

    def global_batches(self) -> list[list[int]]:
        """This epoch's global batches, one per optimiser step, before they are split."""
        generator = generator_of(self.seed, self.epoch)
        count = len(self.lengths)
        if self.shuffle:
            return shuffled_batches(self._keys, self._cuts, generator)
        order = torch.argsort(self._keys, descending=True, stable=True)
        if self.sample_batches is not None:
            is_sampled = torch.zeros(count, dtype=torch.bool)
            drawn = torch.randperm(count, generator=torch.Generator().manual_seed(SAMPLE_SEED))
            is_sampled[drawn[: self._cuts[self.sample_batches]]] = True
            order = torch.cat([order[is_sampled[order]], order[~is_sampled[order]]])
        return _cut(order, self._cuts)

    def _cut_by_tokens(self, max_tokens: int) -> list[int]:
        """Divide the lengths, longest first, into global batches whose shares stay within the budget."""
        keys = self._keys if self.group_by_length else torch.full_like(self.lengths, int(self.lengths.max()))
        longest_first = keys.sort(descending=True).values.clamp(max=max_tokens).tolist()
        cuts = [0]
        for position in range(len(longest_first)):
            largest_share = -(-(position + 1 - cuts[-1]) // self.shares)
            if position > cuts[-1] and largest_share * longest_first[cuts[-1]] > max_tokens:
                cuts.append(position)
        return [*cuts, len(self.lengths)] if longest_first else cuts


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """What an epoch is shuffled with."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


def shuffled_batches(keys: torch.Tensor, cuts: Sequence[int], generator: torch.Generator) -> list[list[int]]:
    """Examples shuffled among those of equal keys, in order of their keys, cut into batches, and these shuffled.

    Args:
        keys: One an example.
        cuts: Where batches begin, and where the last one ends.
        generator: Of the shuffling.
    """
    order = torch.randperm(len(keys), generator=generator)
    batches = _cut(order[torch.argsort(keys[order], descending=True, stable=True)], cuts)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _cut(order: torch.Tensor, cuts: Sequence[int]) -> list[list[int]]:
    return [order[start:stop].tolist() for start, stop in pairwise(cuts)]


def bucket(lengths: torch.Tensor) -> torch.Tensor:
    """Round lengths up to a multiple of a sixteenth of the power of two below them (at most 6 % more)."""
    width = (2 ** torch.floor(torch.log2(lengths.clamp(min=1).double())).long() // 16).clamp(min=1)
    return (lengths + width - 1) // width * width
