"""Minibatches by brute force: however a rollout is cut, an optimiser step learns the same from the same responses."""

import io

import pytest
import torch

from src.modules.online.buffer import RolloutBuffer
from src.rl.drawable import Drawable
from src.rl.rollout import Rollout

UNITS = ["tokens", "responses", "rollout"]
CUTS = {"two accumulated": (1, 4, 2), "two processes": (2, 2, 1), "four accumulated": (1, 4, 4)}
"""Processes, minibatches of a pass on each, minibatches accumulated."""


def rollout(size):
    generator = torch.Generator().manual_seed(size)
    lengths = torch.randint(0, 7, (size,), generator=generator)
    lengths[0] = 6
    mask = (torch.arange(6) < lengths.unsqueeze(1)).long()
    per_token = torch.randn(size, 6, generator=generator) * mask
    return Rollout(
        index=torch.arange(size),
        query_ids=torch.ones(size, 3, dtype=torch.long),
        query_mask=torch.ones(size, 3, dtype=torch.long),
        response_ids=torch.ones(size, 6, dtype=torch.long),
        response_mask=mask,
        has_eos=torch.ones(size, dtype=torch.bool),
        drawable=Drawable.everything(size, 6),
        logprobs=per_token,
        ref_logprobs=per_token,
        scores=torch.arange(float(size)),
        shaped_scores=torch.arange(float(size)),
        advantages=per_token,
    )


def filled(size, seed=0, iterations=1):
    buffer = RolloutBuffer(seed)
    for _ in range(iterations):
        buffer.fill(rollout(size))
    return buffer


def loss(minibatch, unit):
    """What a method of that unit would make of some figures a token."""
    part = minibatch.rollout
    if unit == "responses":
        return minibatch.weight * float(part.scores.mean())
    total, tokens = float(part.advantages.mul(part.response_mask).sum()), int(part.response_mask.sum())
    return minibatch.weight * total / (max(1, tokens) if unit == "tokens" else minibatch.tokens_per_minibatch)


def steps(buffers, cut, unit, passes=1):
    """Each optimiser step's responses, and the mean that processes and accumulation make of the losses."""
    processes, minibatches, accumulate = cut
    taken = []
    while not buffers[0].ended(passes * minibatches):
        rows, losses = [], []
        for _ in range(accumulate):
            for rank, buffer in enumerate(buffers):
                given = {"rank": rank, "world_size": processes, "accumulate": accumulate}
                minibatch = buffer.next(minibatches=minibatches, unit=unit, **given)
                if minibatch.rollout.response_mask.any() or minibatch.weight:
                    rows += minibatch.rollout.index.tolist()
                losses.append(loss(minibatch, unit))
        taken.append((sorted(rows), sum(losses) / len(losses)))
    return taken


def truth(rows, size, unit, number):
    """The mean by its definition, from the responses of the whole step."""
    whole, index = rollout(size), torch.tensor(rows, dtype=torch.long)
    if unit == "responses":
        return float(whole.scores[index].mean())
    total = float(whole.advantages[index].sum())
    tokens = whole.response_mask[index].sum() if unit == "tokens" else whole.response_mask.sum() / number
    return total / max(1.0, float(tokens))


@pytest.mark.parametrize("size", [4, 5, 7, 16, 23])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("cut", CUTS)
def test_a_step_learns_the_mean_over_its_responses(cut, unit, size):
    taken = steps([filled(size) for _ in range(CUTS[cut][0])], CUTS[cut], unit, passes=2)
    for one_pass in (taken[: len(taken) // 2], taken[len(taken) // 2 :]):
        assert sorted(row for rows, _ in one_pass for row in rows) == list(range(size))
        for rows, learned in one_pass:
            assert learned == pytest.approx(truth(rows, size, unit, len(one_pass)), abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16])
@pytest.mark.parametrize("unit", UNITS)
def test_two_processes_take_the_steps_of_one(unit, size):
    one = steps([filled(size)], CUTS["two accumulated"], unit, passes=3)
    two = steps([filled(size), filled(size)], CUTS["two processes"], unit, passes=3)
    assert len(one) == len(two) == 6
    for (rows, learned), (other_rows, other_learned) in zip(one, two, strict=True):
        assert {row for row in rows if rollout(size).response_mask[row].any()} == {
            row for row in other_rows if rollout(size).response_mask[row].any()
        }
        assert learned == pytest.approx(other_learned, abs=1e-6)


@pytest.mark.parametrize("unit", UNITS)
def test_a_process_without_a_response_has_one_without_tokens(unit):
    given = {"minibatches": 1, "unit": unit, "world_size": 2}
    parts = [filled(1).next(rank=rank, **given).rollout for rank in (0, 1)]
    assert sorted(int(part.response_mask.sum()) for part in parts) == [0, 6]
    assert [len(part) for part in parts] == [1, 1]


def test_a_step_without_tokens_is_idle_on_every_process():
    buffers = [filled(1), filled(1)]
    idle = [
        [buffer.next(minibatches=4, unit="tokens", rank=rank, world_size=2, accumulate=2).is_idle for _ in range(4)]
        for rank, buffer in enumerate(buffers)
    ]
    assert idle == [[False, False, True, True]] * 2


def test_passes_iterations_and_seeds_shuffle_anew():
    orders = set()
    for seed, iterations in ((0, 1), (0, 2), (1, 1)):
        buffer = filled(16, seed, iterations)
        for _ in range(2):
            rows = [buffer.next(minibatches=4, unit="tokens").rows for _ in range(4)]
            orders.add(tuple(torch.cat(rows).tolist()))
    assert len(orders) == 6


def saved(buffer, minibatches):
    """Through a file, as a checkpoint goes."""
    file = io.BytesIO()
    torch.save(buffer.state_dict(minibatches), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def restored(state, minibatches):
    buffer = RolloutBuffer(99)
    buffer.load_state_dict(state, minibatches)
    return buffer


@pytest.mark.parametrize(("first", "second"), [(a, b) for a in CUTS for b in CUTS if "four" not in a + b])
@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_run_goes_on_where_it_was_cut_on_any_number_of_processes(first, second, done):
    size, unit, passes = 13, "tokens", 2
    peaceful = steps([filled(size)], CUTS["two accumulated"], unit, passes)
    processes, minibatches, accumulate = CUTS[first]
    buffer = filled(size)
    for _ in range(done * accumulate):
        buffer.next(minibatches=minibatches, unit=unit, world_size=processes, accumulate=accumulate)
    state = saved(buffer, passes * minibatches)
    processes, minibatches, _ = CUTS[second]
    rest = steps([restored(state, passes * minibatches) for _ in range(processes)], CUTS[second], unit, passes)
    assert [rows for rows, _ in rest] == [rows for rows, _ in peaceful[done:]]
    assert [learned for _, learned in rest] == pytest.approx([learned for _, learned in peaceful[done:]], abs=1e-6)


def test_the_rest_is_left_out_where_the_cut_falls_within_a_minibatch():
    buffer = filled(8)
    for _ in range(3):
        buffer.next(minibatches=4, unit="tokens")
    assert restored(saved(buffer, 4), 2).ended(2)
    assert not restored(saved(buffer, 4), 4).ended(4)


def test_what_was_stopped_stays_so():
    buffer = filled(8)
    for _ in range(2):
        buffer.next(minibatches=4, unit="tokens")
    assert not buffer.is_over
    buffer.stop()
    assert buffer.is_over
    for minibatches in (2, 4, 8):
        assert restored(saved(buffer, 4), minibatches).is_over
    buffer.fill(rollout(8))
    assert not buffer.is_over


def test_between_two_iterations_no_rollout_is_kept():
    buffer = filled(8)
    for _ in range(4):
        buffer.next(minibatches=4, unit="tokens")
    state = saved(buffer, 4)
    assert state["rollout"] is None
    again = restored(state, 4)
    assert again.ended(4)
    assert (again.seed, again.iteration) == (0, 1)
