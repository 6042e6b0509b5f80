import pytest
import torch

from src.rl.drawable import Drawable


def sets(*counts, vocabulary=200, seed=0):
    """Random sets, of so many tokens each."""
    order = torch.rand(len(counts), vocabulary, generator=torch.Generator().manual_seed(seed)).argsort()
    return order < torch.tensor(counts).unsqueeze(1)


@pytest.mark.parametrize(
    ("counts", "form", "width"),
    [((3, 1, 6), "kept", 6), ((199, 200, 194), "excluded", 6), ((100, 90, 110), "bits", 25), ((1, 200), "bits", 25)],
)
def test_what_is_kept_comes_back_from_whichever_form_is_small(counts, form, width):
    kept = sets(*counts)
    drawable = Drawable.of(kept)
    assert (drawable.form, drawable.data.shape) == (form, (len(counts), width))
    assert torch.equal(drawable.mask(200), kept)
    assert torch.equal(drawable[torch.tensor([1, 0])].mask(200), kept[[1, 0]])
    assert torch.equal(torch.cat([part.mask(200) for part in drawable.split(2)]), kept)


@pytest.mark.parametrize("vocabulary", [1, 7, 8, 9])
def test_small_vocabularies_need_not_be_a_multiple_of_eight(vocabulary):
    kept = torch.rand(50, vocabulary, generator=torch.Generator().manual_seed(2)) < 0.5
    drawable = Drawable.of(kept)
    assert drawable.form == "bits"
    assert torch.equal(drawable.mask(vocabulary), kept)


def test_top_k_of_a_large_vocabulary_takes_four_bytes_a_token_and_top_p_a_bit():
    for count, most in ((50, 50 * 4), (9000, 32128 // 8)):
        data = Drawable.of(sets(count, count, vocabulary=32128)).data
        assert data.nbytes == 2 * most


@pytest.mark.parametrize("counts", [[3, 2], [199, 198], [90, 110], [3, 110], [199, 3], [None, 199], [None, 3]])
def test_steps_become_one_whatever_their_forms(counts):
    rows = torch.tensor([2, 0])
    kept = [None if count is None else sets(count, count + 1, seed=count) for count in counts]
    steps = [None if each is None else (rows, Drawable.of(each)) for each in kept]
    whole = Drawable.assemble(steps, 3, 200, torch.device("cpu"))
    assert whole.shape == (3, 2)
    for place, each in enumerate(kept):
        found = whole[rows].mask(200)[:, place]
        assert torch.equal(found, torch.ones_like(found) if each is None else each)


def test_no_restriction_takes_nothing_and_leaves_logits_alone():
    for everything in (Drawable.everything(2, 3), Drawable.assemble([None] * 3, 2, 200, torch.device("cpu"))):
        assert everything.data.numel() == 0
        assert everything.mask(200).all()
        logits = torch.randn(2, 3, 200)
        assert everything.restrict(logits) is logits


def test_a_softmax_gives_no_probability_to_what_is_left_out():
    kept = sets(3, 150, 199)
    probabilities = Drawable.of(kept).restrict(torch.randn(3, 200)).softmax(-1)
    assert torch.equal(probabilities > 0, kept)
