import pytest
import torch

from src.rl.drawable import Drawable
from src.rl.losses import ppo_loss
from src.rl.rollout import Rollout
from src.rl.stats import rollout_stats, update_stats


@pytest.fixture
def rollout():
    generator = torch.Generator().manual_seed(11)
    mask = (torch.arange(6) < torch.tensor([6, 2, 3, 5]).unsqueeze(1)).long()
    names = ("logprobs", "ref_logprobs", "values", "kl", "rewards", "advantages", "returns")
    tokens = dict(zip(names, torch.randn(7, 4, 6, generator=generator) * mask, strict=True))
    return Rollout(
        query_ids=torch.ones(4, 5, dtype=torch.long),
        query_mask=(torch.arange(5) < torch.tensor([5, 4, 1, 2]).unsqueeze(1)).long(),
        response_ids=torch.ones(4, 6, dtype=torch.long),
        response_mask=mask,
        drawable=Drawable.everything(4, 6),
        scores=torch.tensor([1.0, 2.0, 3.0, 6.0]),
        shaped_scores=torch.tensor([0.0, 0.0, 1.0, 1.0]),
        **tokens,
    )


def test_the_figures_of_a_rollout(rollout):
    stats = rollout_stats(rollout, kl_coef=0.2)
    assert stats["objective/kl"] == pytest.approx(rollout.kl.sum(1).mean().item(), rel=1e-5)
    assert stats["objective/entropy"] == pytest.approx(-rollout.logprobs.sum(1).mean().item(), rel=1e-5)
    assert stats["objective/kl_coef"] == 0.2
    assert stats["ppo/mean_non_score_reward"] == pytest.approx(-0.2 * rollout.kl.sum().item() / 16, rel=1e-5)
    assert stats["env/reward_mean"] == 3.0
    assert stats["env/reward_std"] == pytest.approx(rollout.scores.std().item())
    assert stats["ppo/mean_scores"] == 0.5
    assert stats["tokens/responses_len_mean"] == 4.0
    assert stats["tokens/queries_len_mean"] == 3.0
    assert stats["tokens/responses_len_std"] == pytest.approx(torch.tensor([6.0, 2, 3, 5]).std().item())


def losses(rollout, shift=0.1):
    return [
        ppo_loss(
            batch.logprobs + shift,
            batch.values,
            -batch.logprobs,
            old_logprobs=batch.logprobs,
            old_values=batch.values,
            advantages=batch.advantages,
            returns=batch.returns,
            mask=batch.response_mask,
        )
        for batch in map(rollout.select, torch.tensor([2, 0, 3, 1]).split(3))
    ]


def test_the_figures_of_an_update_are_means_over_minibatches(rollout):
    minibatches = losses(rollout)
    stats = update_stats(minibatches)
    for name in ("policy/clipfrac", "val/error", "loss/total", "returns/mean", "policy/advantages_mean"):
        mean = sum(loss.stats[name].item() for loss in minibatches) / 2
        assert stats[f"ppo/{name}"] == pytest.approx(mean, rel=1e-5, abs=1e-7), name
    explained = 1 - stats["ppo/val/error"] / stats["ppo/returns/var"]
    assert stats["ppo/val/var_explained"] == pytest.approx(explained)
    assert stats["ppo/policy/ratio_mean"] == pytest.approx(torch.tensor(0.1).exp().item(), rel=1e-5)
    advantages = rollout.advantages[rollout.response_mask.bool()]
    assert stats["ppo/policy/advantages_std"] == pytest.approx(advantages.std().item(), rel=1e-5)
    assert stats["ppo/skipped_minibatches"] == 0


def test_skipped_minibatches_are_counted(rollout):
    assert update_stats(losses(rollout, shift=5.0))["ppo/skipped_minibatches"] == 2


def test_a_process_that_doubles_every_sum_leaves_means_as_they_are(rollout):
    """Two processes with the same data: sums double, means stay, skips add up."""
    alone, both = (update_stats(losses(rollout, 5.0), reduce) for reduce in (None, lambda tensor: 2 * tensor))
    assert both["ppo/skipped_minibatches"] == 2 * alone["ppo/skipped_minibatches"]
    for name in ("ppo/loss/value", "ppo/val/error", "ppo/policy/ratio_mean"):
        assert both[name] == pytest.approx(alone[name], rel=1e-5)
    means = [rollout_stats(rollout, 0.2, reduce) for reduce in (None, lambda tensor: 2 * tensor)]
    for name in ("objective/kl", "objective/entropy", "env/reward_mean", "tokens/responses_len_mean"):
        assert means[1][name] == pytest.approx(means[0][name], rel=1e-5)
