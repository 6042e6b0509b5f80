"""Batches of a buffer: every example once, the same steps however they are dealt, a buffer at a time."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from src.datamodules.sampler import LengthGroupedBatchSampler
from src.datamodules.stream_sampler import PLACES, BufferedBatchSampler
from src.errors import ParleyError


def lengths_of(count: int) -> torch.Tensor:
    return torch.randint(5, 400, (count,), generator=torch.Generator().manual_seed(3))


def sampler(count: int, *, grouped: bool = True, **options: Any) -> BufferedBatchSampler:
    lengths = lengths_of(count)
    return BufferedBatchSampler(count, (lambda start, stop: lengths[start:stop]) if grouped else None, **options)


CASES = [
    pytest.param(
        count, buffer, size, world, accumulate, uses, id=f"{count}-{buffer}-{size}x{world}x{accumulate}x{uses}"
    )
    for count, buffer, (size, world, accumulate, uses) in itertools.product(
        (1, 7, 64, 1_003), (1, 50, 200, 2_000), ((4, 1, 1, 1), (3, 2, 1, 1), (2, 3, 2, 1), (4, 2, 1, 3))
    )
]


@pytest.mark.parametrize(("count", "buffer", "size", "world", "accumulate", "uses"), CASES)
@pytest.mark.parametrize("grouped", [True, False])
def test_every_example_comes_once_an_epoch(count, buffer, size, world, accumulate, uses, grouped):
    options = {"buffer": buffer, "batch_size": size, "world_size": world, "accumulate": accumulate, "uses": uses}
    ranks = [sampler(count, grouped=grouped, rank=rank, **options) for rank in range(world)]
    for epoch in (0, 1):
        for each in ranks:
            each.set_epoch(epoch)
        dealt = [list(each) for each in ranks]
        assert {len(batches) for batches in dealt} == {len(ranks[0])}, "processes stay in step"
        assert all(len(batch) <= size for batches in dealt for batch in batches)
        seen = Counter(index for batches in dealt for batch in batches for index in batch if index >= 0)
        assert seen == Counter(dict.fromkeys(range(count), uses))
        steps = [sorted(batch) for batch in ranks[0].batches_from(0)]
        assert len(steps) == -(-count // (size * world * accumulate)) == ranks[0].steps
        turns = accumulate * uses
        for step, batch in enumerate(steps):  # what the processes take of a step is that step
            taken = [
                index for batches in dealt for part in batches[step * turns : (step + 1) * turns] for index in part
            ]
            assert sorted(index for index in taken if index >= 0) == sorted(batch * uses)


def test_steps_are_the_same_on_any_number_of_processes():
    whole = list(sampler(500, buffer=96, batch_size=12, seed=7).batches_from(0))
    for world, accumulate in ((2, 1), (3, 1), (1, 4), (2, 3), (4, 3)):
        other = sampler(
            500,
            buffer=96,
            batch_size=12 // world // accumulate,
            seed=7,
            world_size=world,
            accumulate=accumulate,
            rank=1,
        )
        assert list(other.batches_from(0)) == whole


@pytest.mark.parametrize("grouped", [True, False])
def test_it_goes_on_from_any_batch(grouped):
    options = {
        "buffer": 60,
        "batch_size": 4,
        "world_size": 2,
        "accumulate": 2,
        "uses": 2,
        "rank": 1,
        "grouped": grouped,
    }
    whole = list(sampler(203, **options))
    for start in range(len(whole) + 1):
        again = sampler(203, **options)
        again.start_batch = start
        assert list(again) == whole[start:]


def test_a_buffer_that_holds_everything_is_a_shuffled_dataset():
    lengths = lengths_of(300)
    for grouped, seed, epoch in itertools.product((True, False), (0, 2**63 - 1), (0, 3)):
        options = {"batch_size": 4, "world_size": 2, "rank": 1, "seed": seed}
        streamed = sampler(300, grouped=grouped, buffer=300, **options)
        in_memory = LengthGroupedBatchSampler(lengths, shuffle=True, group_by_length=grouped, **options)
        streamed.set_epoch(epoch)
        in_memory.set_epoch(epoch)
        assert list(streamed) == list(in_memory)


@pytest.mark.parametrize(("buffer", "size"), [(400, 5), (64, 8), (10, 40)])
def test_batches_of_a_buffer_are_from_a_few_stretches_and_no_other_buffer(buffer, size):
    """By brute force: the stretches that are in use at any time fit into the buffer, and each is read once."""
    made = sampler(2_000, buffer=buffer, batch_size=size)
    assert made.stretch * made.stretches <= max(buffer, size)
    assert made.stretches <= max(PLACES, 2 * PLACES - 1)
    batches = list(made)
    uses = {}
    for number, batch in enumerate(batches):
        for index in batch:
            uses.setdefault(index // made.stretch, []).append(number)
    spans = [(min(numbers), max(numbers)) for numbers in uses.values()]
    for number in range(len(batches)):
        assert sum(first <= number <= last for first, last in spans) <= made.stretches
    order = [index for batch in batches for index in batch]
    assert sum(abs(order[place] - place) for place in range(2_000)) / 2_000 > 400, "stretches come from all over"


def test_epochs_and_seeds_differ_and_lengths_are_alike_within_a_batch():
    lengths = lengths_of(3_000)

    def order(seed: int, epoch: int) -> list[list[int]]:
        made = sampler(3_000, buffer=1_000, batch_size=10, seed=seed)
        made.set_epoch(epoch)
        return list(made)

    assert order(1, 0) == order(1, 0)
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    grouped = order(1, 0)
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in grouped)
    assert padded < 1.1 * int(lengths.sum())  # 1.9 times as many in batches at random


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"buffer": 0}])
def test_sizes_are_positive(options):
    with pytest.raises(ParleyError, match="must be positive"):
        sampler(10, **options)
