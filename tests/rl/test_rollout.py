"""Choosing, joining and keeping responses: no token is lost, and no padding is kept for nothing."""

import io
from dataclasses import replace

import pytest
import torch

from src.rl.drawable import Drawable
from src.rl.rollout import Rollout

QUERIES, LENGTHS = [5, 2, 7, 3, 4], [3, 6, 0, 1, 4]
PER_TOKEN = ("logprobs", "ref_logprobs", "values", "advantages", "returns")


def make(pad_queries="right"):
    generator = torch.Generator().manual_seed(10)
    query_mask = (torch.arange(7) < torch.tensor(QUERIES).unsqueeze(1)).long()
    if pad_queries == "left":
        query_mask = query_mask.flip(-1)
    mask = (torch.arange(8) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    return Rollout(
        index=torch.arange(5),
        query_ids=torch.randint(1, 99, (5, 7), generator=generator) * query_mask,
        query_mask=query_mask,
        response_ids=torch.randint(1, 99, (5, 8), generator=generator),
        response_mask=mask,
        has_eos=torch.tensor([True, False, False, True, True]),
        drawable=Drawable.of(torch.rand(5, 8, 40, generator=generator) < 0.5),
        scores=torch.arange(5.0),
        shaped_scores=torch.arange(5.0) / 2,
        **dict(zip(PER_TOKEN, torch.randn(5, 5, 8, generator=generator) * mask, strict=True)),
    )


def assert_rows(chosen, rollout, rows):
    """The chosen responses are those rows, token by token."""
    assert len(chosen) == len(rows)
    for place, row in enumerate(rows):
        for ids, mask in (("query_ids", "query_mask"), ("response_ids", "response_mask")):
            kept = getattr(chosen, ids)[place][getattr(chosen, mask)[place].bool()]
            assert torch.equal(kept, getattr(rollout, ids)[row][getattr(rollout, mask)[row].bool()])
        length = LENGTHS[row]
        sets = [each.drawable[index, :length].mask(40) for each, index in ((chosen, place), (rollout, row))]
        assert torch.equal(*sets)
        for name in PER_TOKEN:
            assert torch.equal(getattr(chosen, name)[place, :length], getattr(rollout, name)[row, :length]), name
        for name in ("index", "scores", "shaped_scores", "has_eos"):
            assert getattr(chosen, name)[place] == getattr(rollout, name)[row], name


@pytest.mark.parametrize("pad_queries", ["right", "left"])
def test_selection_keeps_every_token_and_drops_needless_padding(pad_queries):
    rollout = make(pad_queries)
    chosen = rollout.select(torch.tensor([3, 0]))
    assert chosen.query_ids.shape == (2, 5)
    assert chosen.response_ids.shape == (2, 3)
    assert_rows(chosen, rollout, [3, 0])
    assert chosen.scores.tolist() == [3.0, 0.0]


@pytest.mark.parametrize("pad_queries", ["right", "left"])
def test_joined_parts_are_the_whole(pad_queries):
    rollout = make(pad_queries)
    parts = [rollout.select(torch.tensor(rows)) for rows in ([3, 0], [2], [1, 4])]
    joined = Rollout.join(parts, pads_left=pad_queries == "left", vocabulary=40)
    assert_rows(joined, rollout, [3, 0, 2, 1, 4])
    assert_rows(joined.select(torch.tensor([1, 3, 2, 0, 4])), rollout, range(5))
    side = joined.query_mask[:, -1 if pad_queries == "left" else 0]
    assert side.all()


def test_parts_without_values_join_without():
    part = replace(make(), values=None, returns=None)
    assert Rollout.join([part, part], pads_left=False, vocabulary=40).values is None


def test_a_checkpoint_keeps_all_of_it():
    rollout = make()
    file = io.BytesIO()
    torch.save(rollout.state_dict(), file)
    file.seek(0)
    restored = Rollout.from_state_dict(torch.load(file, weights_only=True))
    assert_rows(restored, rollout, range(5))
    assert restored.response_ids.shape == rollout.response_ids.shape


def test_an_empty_response_keeps_one_column():
    assert make().select(torch.tensor([2])).response_ids.shape == (1, 1)


def test_nothing_is_left_of_an_emptied_one_but_its_shape():
    emptied = make().empty()
    assert len(emptied) == 5
    assert not emptied.response_mask.any()


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        make().scores = torch.zeros(5)  # type: ignore[misc]


@pytest.mark.parametrize(("name", "shape"), [("scores", (4,)), ("values", (5, 9)), ("query_mask", (5, 8))])
def test_shapes_that_do_not_agree_are_named(name, shape):
    with pytest.raises(ValueError, match=name):
        replace(make(), **{name: torch.zeros(shape)})
