import json
import math

import pytest
import torch

from src.rl.scores import RunningMoments, ScoreShaper, clip_scores, penalise_missing_eos, scale_scores


@pytest.fixture
def stream():
    generator = torch.Generator().manual_seed(3)
    return [5 + 3 * torch.randn(size, generator=generator) for size in (16, 4, 1, 33)]


def test_running_moments_are_those_of_everything_seen(stream):
    moments = RunningMoments()
    for batch in stream:
        moments.update(batch)
    seen = torch.cat(stream)
    assert moments.mean == pytest.approx(seen.mean().item(), rel=1e-5)
    assert moments.std == pytest.approx(seen.std().item(), rel=1e-5)
    assert moments.count == len(seen)


def test_scores_that_are_not_finite_are_left_out(stream):
    clean, dirty = RunningMoments(), RunningMoments()
    clean.update(stream[0])
    dirty.update(torch.cat([stream[0], torch.tensor([float("nan"), float("inf")])]))
    dirty.update(torch.tensor([float("nan")]))
    assert dirty.state_dict() == pytest.approx(clean.state_dict())


def test_moments_go_on_from_their_state(stream):
    straight, first, second = RunningMoments(), RunningMoments(), RunningMoments()
    for batch in stream:
        straight.update(batch)
    for batch in stream[:2]:
        first.update(batch)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for batch in stream[2:]:
        second.update(batch)
    assert second.state_dict() == straight.state_dict()


def test_one_score_alone_has_no_deviation_and_stays_as_it_is():
    moments = RunningMoments()
    moments.update(torch.tensor([4.0]))
    assert moments.std == 1.0
    assert scale_scores(torch.tensor([4.0]), moments).item() == pytest.approx(4.0)


def test_scaling_and_whitening(stream):
    moments = RunningMoments()
    moments.update(stream[0])
    scaled, centred = scale_scores(stream[0], moments), scale_scores(stream[0], moments, center=True)
    assert scaled.std().item() == pytest.approx(1, abs=1e-5)
    assert scaled.mean().item() == pytest.approx((stream[0].mean() / stream[0].std()).item(), rel=1e-5)
    assert centred.mean().item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("score", [0.0, 0.1, -3.7, 1e4])
@pytest.mark.parametrize("center", [True, False])
def test_equal_scores_have_no_scale_and_keep_their_size(score, center):
    moments = RunningMoments()
    for size in (16, 7, 33):  # more than one batch: rounding must not pass for a deviation
        moments.update(torch.full((size,), score))
        scaled = scale_scores(torch.full((size,), score), moments, center)
        torch.testing.assert_close(scaled, torch.full((size,), 0.0 if center else score), rtol=1e-5, atol=1e-3)


def test_scores_that_differ_after_equal_ones_are_scaled_again():
    moments, seen = RunningMoments(), torch.tensor([1.0] * 16 + [1.0, 1.001, 0.999, 1.0])
    for batch in seen.split(16):
        moments.update(batch)
    assert moments.std == pytest.approx(seen.std().item(), rel=1e-3)


def test_clipping():
    assert clip_scores(torch.tensor([-9.0, 0.5, math.inf]), 2.0).tolist() == [-2.0, 0.5, 2.0]


def test_the_penalty_is_for_responses_without_eos():
    scores = penalise_missing_eos(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), 1.5)
    assert scores.tolist() == [1.0, 0.5]


def test_the_shaper_changes_nothing_by_default():
    shaper, scores = ScoreShaper(), torch.tensor([3.0, -40.0])
    assert torch.equal(shaper(scores, torch.tensor([False, False])), scores)
    assert shaper.state_dict() == ScoreShaper().state_dict()


def test_the_shaper_scales_then_clips_then_penalises(stream):
    shaper = ScoreShaper(use_score_scaling=True, use_score_norm=True, score_clip=0.5, missing_eos_penalty=3.0)
    has_eos = torch.arange(16) % 2 == 0
    shaped = shaper(stream[0], has_eos)
    whitened = ((stream[0] - stream[0].mean()) / stream[0].std()).clamp(-0.5, 0.5)
    torch.testing.assert_close(shaped, torch.where(has_eos, whitened, whitened - 3.0), rtol=0, atol=1e-5)
    resumed = ScoreShaper(use_score_scaling=True)
    resumed.load_state_dict(shaper.state_dict())
    assert resumed.moments.mean == shaper.moments.mean == pytest.approx(stream[0].mean().item(), rel=1e-5)


@pytest.mark.parametrize("center", [True, False])
def test_scores_that_are_not_finite_become_0_after_the_moments_not_before(stream, center):
    """A published run's scores lie near 3.5: two zeros among them would swell the variance for the rest of it."""
    bad = torch.tensor([math.nan, math.inf, -math.inf])
    clean, dirty = (ScoreShaper(use_score_scaling=True, use_score_norm=center, score_clip=9.0) for _ in range(2))
    for batch in stream:
        expected = clean(batch, torch.ones(len(batch)))
        shaped = dirty(torch.cat([batch, bad]), torch.ones(len(batch) + 3))
        torch.testing.assert_close(shaped, torch.cat([expected, torch.zeros(3)]))
    assert dirty.state_dict()["moments"] == pytest.approx(clean.state_dict()["moments"])
