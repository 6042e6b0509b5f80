"""The batch sampler's promises, checked by brute force over random configurations."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from transformers.trainer_pt_utils import LengthGroupedSampler

from src.datamodules.sampler import LengthGroupedBatchSampler
from src.errors import ParleyError


def configurations(count: int) -> list[dict[str, Any]]:
    chance = random.Random(0)
    made = []
    for _ in range(count):
        lengths = [chance.randint(1, chance.choice([3, 40, 700])) for _ in range(chance.randint(1, 120))]
        made.append(
            {
                "lengths": lengths,
                "batch_size": chance.randint(1, 9),
                "max_tokens": chance.choice([None, max(lengths) + chance.randint(0, 500)]),
                "shuffle": chance.random() < 0.8,
                "group_by_length": chance.random() < 0.8,
                "seed": chance.randint(0, 99),
                "world_size": chance.randint(1, 5),
                "accumulate": chance.choice([1, 1, 2, 3]),
            }
        )
    return made


def samplers(config: dict[str, Any], epoch: int = 0) -> list[LengthGroupedBatchSampler]:
    made = [LengthGroupedBatchSampler(**config, rank=rank) for rank in range(config["world_size"])]
    for sampler in made:
        sampler.set_epoch(epoch)
    return made


@pytest.mark.parametrize("config", configurations(150))
def test_promises(config: dict[str, Any]) -> None:
    count, orders = len(config["lengths"]), []
    for epoch in range(3):
        per_rank = [list(sampler) for sampler in samplers(config, epoch)]
        # As many batches on every rank, in every epoch, as the length says, and none empty.
        assert {len(batches) for batches in per_rank} == {len(samplers(config)[0])}
        assert all(batch for batches in per_rank for batch in batches)
        # Every example once over all ranks; a filler stands alone.
        real = [index for batches in per_rank for batch in batches for index in batch if index >= 0]
        assert sorted(real) == list(range(count))
        fillers = [batch for batches in per_rank for batch in batches if batch[0] < 0]
        assert all(len(batch) == 1 and 0 <= -1 - batch[0] < count for batch in fillers)
        for batches in per_rank:
            for batch in batches:
                longest = max(config["lengths"][index if index >= 0 else -1 - index] for index in batch)
                if config["max_tokens"] is None:
                    assert len(batch) <= config["batch_size"]
                else:
                    assert longest * len(batch) <= config["max_tokens"]
        # The same again, and from any batch on.
        assert per_rank == [list(sampler) for sampler in samplers(config, epoch)]
        start = random.Random(epoch).randint(0, len(per_rank[0]))
        for sampler, batches in zip(samplers(config, epoch), per_rank, strict=True):
            sampler.start_batch = start
            assert list(sampler) == batches[start:]
        # A global batch is what the ranks get over the batches of one step.
        for step, batch in enumerate(samplers(config, epoch)[0].global_batches()):
            turns = range(step * config["accumulate"], (step + 1) * config["accumulate"])
            dealt = [index for batches in per_rank for turn in turns for index in batches[turn] if index >= 0]
            assert sorted(dealt) == sorted(batch)
        orders.append(per_rank)
    if config["shuffle"] and count > 20:
        assert orders[0] != orders[1] != orders[2]
    if not config["shuffle"]:
        assert orders[0] == orders[1]


@pytest.mark.parametrize("config", configurations(60))
def test_other_numbers_of_processes_have_the_same_global_batches(config: dict[str, Any]) -> None:
    config["world_size"], config["accumulate"] = 4, 1
    [four, *_] = samplers(config, epoch=2)
    shares = [sorted(sampler.global_batches()) for sampler in samplers(config, epoch=2)]
    assert all(share == shares[0] for share in shares)
    for world_size, accumulate in ((2, 2), (1, 4)):  # the memory of a process stays, the steps too
        [other, *_] = samplers({**config, "world_size": world_size, "accumulate": accumulate}, epoch=2)
        assert other.global_batches() == four.global_batches()
    if config["max_tokens"] is None:  # a process takes more
        wider = {**config, "world_size": 2, "batch_size": 2 * config["batch_size"]}
        assert samplers(wider, epoch=2)[0].global_batches() == four.global_batches()


def test_shares_go_to_the_same_turns_whoever_deals() -> None:
    config = {"lengths": list(range(1, 100)), "batch_size": 3, "shuffle": True, "accumulate": 1, "world_size": 4}
    four = [list(sampler) for sampler in samplers(config)]
    two = [list(sampler) for sampler in samplers({**config, "world_size": 2, "accumulate": 2})]
    [one] = [list(sampler) for sampler in samplers({**config, "world_size": 1, "accumulate": 4})]
    in_turn = [four[rank][step] for step in range(len(four[0])) for rank in range(4)]
    assert in_turn == one == [two[rank][turn] for turn in range(len(two[0])) for rank in range(2)]


def test_without_shuffling_the_longest_come_first() -> None:
    lengths = [random.Random(1).randint(1, 400) for _ in range(100)]
    batches = list(LengthGroupedBatchSampler(lengths, batch_size=10))
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest[0] == max(lengths)
    assert all(later <= earlier * 17 / 16 for earlier, later in itertools.pairwise(longest))
    in_order = LengthGroupedBatchSampler(lengths, batch_size=30, group_by_length=False)
    assert [index for batch in in_order for index in batch] == list(range(100))


def test_no_examples_make_no_batches() -> None:
    for options in ({"batch_size": 4}, {"max_tokens": 4}):
        assert list(LengthGroupedBatchSampler([], **options)) == []


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ParleyError, match="max_tokens_per_batch is 9, but the longest example has 10 tokens"):
        LengthGroupedBatchSampler([3, 10], max_tokens=9)
    for options in ({"batch_size": 0}, {"max_tokens": 0}):
        with pytest.raises(ParleyError, match="must be positive"):
            LengthGroupedBatchSampler([1], **options)


def test_set_epoch_starts_another_epoch_at_its_first_batch_and_leaves_a_resumed_one() -> None:
    sampler = LengthGroupedBatchSampler(range(1, 50), shuffle=True)
    sampler.epoch, sampler.start_batch = 3, 4
    sampler.set_epoch(3)
    assert sampler.start_batch == 4
    sampler.set_epoch(4)
    assert sampler.start_batch == 0
    assert sampler.sampler is sampler  # where Lightning looks for set_epoch


@pytest.fixture(scope="module")
def dialogue_lengths(dialogsum: Any) -> list[int]:
    """Words of DialogSum's validation dialogues, times 1.5 for tokens."""
    import json

    lines = (dialogsum / "dialogsum.dev.jsonl").read_text(encoding="utf-8").splitlines()
    return [int(1.5 * len(json.loads(line)["dialogue"].split())) for line in lines]


def padded_share(batches: list[list[int]], lengths: list[int]) -> float:
    return sum(len(batch) * max(lengths[index] for index in batch) for batch in batches) / sum(lengths)


@pytest.mark.parametrize("batch_size", [8, 16])
def test_padding_is_less_than_transformers_leaves(dialogue_lengths: list[int], batch_size: int) -> None:
    import torch

    def batches(**options: Any) -> list[list[int]]:
        sampler = LengthGroupedBatchSampler(dialogue_lengths, batch_size=batch_size, shuffle=True, **options)
        return list(sampler)

    generator = torch.Generator().manual_seed(0)
    order = list(LengthGroupedSampler(batch_size, lengths=dialogue_lengths, generator=generator))
    theirs = padded_share([order[i : i + batch_size] for i in range(0, 500, batch_size)], dialogue_lengths)
    ours = padded_share(batches(), dialogue_lengths)
    assert ours <= theirs
    assert ours - 1 < (padded_share(batches(group_by_length=False), dialogue_lengths) - 1) / 4


def test_an_example_meets_others_over_the_epochs(dialogue_lengths: list[int]) -> None:
    sampler = LengthGroupedBatchSampler(dialogue_lengths, batch_size=8, shuffle=True)
    met: list[Counter[int]] = [Counter() for _ in dialogue_lengths]
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for batch in sampler:
            for index in batch:
                met[index].update(batch)
    # Without mixing it would be 7; of 500 dialogues, only some 30 are of about the same length.
    assert sum(len(others) - 1 for others in met) / len(met) > 20


@pytest.mark.parametrize("group_by_length", [True, False])
def test_a_limited_evaluation_is_a_fair_sample(group_by_length: bool) -> None:
    """Examples as long as their number: the sample's mean is the whole's, give or take three standard errors."""
    lengths = list(range(1, 1001))

    def taken(batches: int, seed: int = 0, world_size: int = 1) -> list[list[int]]:
        config = {"batch_size": 4, "seed": seed, "world_size": world_size, "group_by_length": group_by_length}
        ranks = [LengthGroupedBatchSampler(lengths, rank=rank, **config) for rank in range(world_size)]
        for sampler in ranks:
            sampler.sample_batches = batches
        dealt = [list(sampler) for sampler in ranks]
        assert sorted(itertools.chain(*itertools.chain(*dealt))) == list(range(1000))  # the rest is still there
        return [list(itertools.chain(*shares)) for shares in zip(*dealt, strict=True)][:batches]

    sample = taken(25)
    examples = [lengths[index] for batch in sample for index in batch]
    assert abs(sum(examples) / len(examples) - 500.5) < 3 * 289 / 100**0.5
    assert taken(25, seed=7) == sample
    assert {*itertools.chain(*taken(5, world_size=5))} == {*itertools.chain(*sample)}
    assert {*itertools.chain(*taken(10))} < {*itertools.chain(*sample)}
    if group_by_length:
        longest = [max(lengths[index] for index in batch) for batch in sample]
        assert all(later < 1.07 * earlier for earlier, later in itertools.pairwise(longest))
        assert all(max(batch) - min(batch) < 150 for batch in sample)
    else:
        assert examples == sorted(examples)
