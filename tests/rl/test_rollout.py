from dataclasses import fields, replace

import pytest
import torch

from src.rl.config import PPOConfig
from src.rl.drawable import Drawable
from src.rl.rollout import Rollout, build_rollout

QUERIES, LENGTHS = [5, 2, 7, 3, 4], [3, 6, 0, 1, 4]


def make(pad_queries="right", config=None, **changes):
    generator = torch.Generator().manual_seed(10)
    query_mask = (torch.arange(7) < torch.tensor(QUERIES).unsqueeze(1)).long()
    if pad_queries == "left":
        query_mask = query_mask.flip(-1)
    logprobs, ref_logprobs, values = torch.randn(3, 5, 8, generator=generator).unbind()
    given = {
        "query_ids": torch.randint(1, 99, (5, 7), generator=generator) * query_mask,
        "query_mask": query_mask,
        "response_ids": torch.randint(1, 99, (5, 8), generator=generator),
        "response_mask": (torch.arange(8) < torch.tensor(LENGTHS).unsqueeze(1)).long(),
        "drawable": Drawable.of(torch.rand(5, 8, 40, generator=generator) < 0.5),
        "logprobs": logprobs,
        "ref_logprobs": ref_logprobs,
        "values": values,
        "scores": torch.arange(5.0),
        "shaped_scores": torch.arange(5.0) / 2,
        "kl_coef": 0.2,
        "config": config or PPOConfig(),
    }
    return build_rollout(**(given | changes))


def test_what_is_built_is_consistent():
    rollout = make(config=PPOConfig(whiten_advantages=False))
    mask = rollout.response_mask.bool()
    assert len(rollout) == 5
    for name in ("logprobs", "ref_logprobs", "values", "kl", "rewards", "advantages", "returns"):
        assert not getattr(rollout, name)[~mask].any(), name
    torch.testing.assert_close(rollout.kl, rollout.logprobs - rollout.ref_logprobs)
    score_part = (rollout.rewards + 0.2 * rollout.kl).sum(-1)
    torch.testing.assert_close(score_part, torch.tensor([0.0, 0.5, 0.0, 1.5, 2.0]))  # the third has no token
    torch.testing.assert_close(rollout.returns, (rollout.advantages + rollout.values) * mask)


def test_the_configuration_reaches_the_mathematics():
    plain = make()
    assert not torch.equal(make(config=PPOConfig(kl_penalty="k3")).kl, plain.kl)
    assert not torch.equal(make(config=PPOConfig(lam=0.5)).advantages, plain.advantages)
    assert not torch.equal(make(config=PPOConfig(gamma=0.5)).returns, plain.returns)
    assert not torch.equal(make(config=PPOConfig(whiten_rewards=True)).returns, plain.returns)
    assert not torch.equal(make(config=PPOConfig(whiten_advantages=False)).advantages, plain.advantages)


def test_half_precision_comes_out_as_float32_without_gradient():
    values = torch.randn(5, 8, requires_grad=True)
    rollout = make(values=values.bfloat16())
    assert rollout.values.dtype == rollout.advantages.dtype == torch.float32
    tensors = [getattr(rollout, field.name) for field in fields(Rollout) if field.name != "drawable"]
    assert not any(tensor.requires_grad for tensor in tensors)


@pytest.mark.parametrize("pad_queries", ["right", "left"])
def test_selection_keeps_every_token_and_drops_needless_padding(pad_queries):
    rollout = make(pad_queries)
    chosen = rollout.select(torch.tensor([3, 0]))
    assert chosen.query_ids.shape == (2, 5)
    assert chosen.response_ids.shape == (2, 3)
    for place, row in enumerate([3, 0]):
        for ids, mask in (("query_ids", "query_mask"), ("response_ids", "response_mask")):
            kept = getattr(chosen, ids)[place][getattr(chosen, mask)[place].bool()]
            assert torch.equal(kept, getattr(rollout, ids)[row][getattr(rollout, mask)[row].bool()])
        length = LENGTHS[row]
        sets = [each.drawable[index, :length].mask(40) for each, index in ((chosen, place), (rollout, row))]
        assert torch.equal(*sets)
        for name in ("logprobs", "ref_logprobs", "values", "kl", "rewards", "advantages", "returns"):
            assert torch.equal(getattr(chosen, name)[place, :length], getattr(rollout, name)[row, :length]), name
    assert chosen.scores.tolist() == [3.0, 0.0]


def test_an_empty_response_keeps_one_column():
    assert make().select(torch.tensor([2])).response_ids.shape == (1, 1)


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        make().scores = torch.zeros(5)  # type: ignore[misc]


@pytest.mark.parametrize(("name", "shape"), [("scores", (4,)), ("values", (5, 9)), ("query_mask", (5, 8))])
def test_shapes_that_do_not_agree_are_named(name, shape):
    with pytest.raises(ValueError, match=name):
        replace(make(), **{name: torch.zeros(shape)})
