"""An iteration's figures and a minibatch's, by plain arithmetic."""

import pytest
import torch

from src.rl.drawable import Drawable
from src.rl.losses import ppo_loss
from src.rl.rollout import Rollout
from src.rl.stats import rollout_stats


@pytest.fixture
def rollout():
    generator = torch.Generator().manual_seed(11)
    mask = (torch.arange(6) < torch.tensor([6, 2, 3, 5]).unsqueeze(1)).long()
    names = ("logprobs", "ref_logprobs", "values", "advantages", "returns")
    tokens = dict(zip(names, torch.randn(5, 4, 6, generator=generator) * mask, strict=True))
    return Rollout(
        index=torch.arange(4),
        query_ids=torch.ones(4, 5, dtype=torch.long),
        query_mask=(torch.arange(5) < torch.tensor([5, 4, 1, 2]).unsqueeze(1)).long(),
        response_ids=torch.ones(4, 6, dtype=torch.long),
        response_mask=mask,
        has_eos=torch.tensor([True, False, True, True]),
        drawable=Drawable.everything(4, 6),
        scores=torch.tensor([1.0, 2.0, 3.0, 6.0]),
        shaped_scores=torch.tensor([0.0, 0.0, 1.0, 1.0]),
        **tokens,
    )


def test_the_figures_of_a_rollout(rollout):
    stats = rollout_stats(rollout)
    kl = (rollout.logprobs - rollout.ref_logprobs).sum(1)
    assert stats["objective/kl"] == pytest.approx(kl.mean().item(), rel=1e-5)
    assert stats["objective/kl_std"] == pytest.approx(kl.std().item(), rel=1e-5)
    assert stats["objective/entropy"] == pytest.approx(-rollout.logprobs.sum(1).mean().item(), rel=1e-5)
    assert stats["env/reward_mean"] == 3.0
    assert stats["env/reward_std"] == pytest.approx(rollout.scores.std().item())
    assert stats["tokens/ended"] == 0.75
    assert stats["tokens/responses_len_mean"] == 4.0
    assert stats["tokens/queries_len_mean"] == 3.0
    assert stats["tokens/responses_len_std"] == pytest.approx(torch.tensor([6.0, 2, 3, 5]).std().item())


def test_one_response_has_no_spread_but_figures(rollout):
    stats = rollout_stats(rollout.select(torch.tensor([3])))
    assert stats["env/reward_mean"] == 6.0
    assert stats["env/reward_std"] == 0.0


def test_what_padding_holds_does_not_matter(rollout):
    clean = rollout_stats(rollout)
    for name in ("logprobs", "ref_logprobs"):
        getattr(rollout, name)[rollout.response_mask == 0] = torch.nan
    assert rollout_stats(rollout) == clean


def losses(rollout, shift):
    return ppo_loss(
        rollout.logprobs + shift,
        rollout.values,
        -rollout.logprobs,
        old_logprobs=rollout.logprobs,
        old_values=rollout.values,
        advantages=rollout.advantages,
        returns=rollout.returns,
        mask=rollout.response_mask,
    ).stats


def test_the_figures_of_a_minibatch(rollout):
    stats = losses(rollout, 0.1)
    tokens = rollout.response_mask.bool()
    explained = 1 - stats["val/error"] / stats["returns/var"]
    assert stats["val/var_explained"] == pytest.approx(explained.item())
    error = (rollout.values - rollout.returns)[tokens].square().mean()
    assert stats["val/error"] == pytest.approx(error.item(), rel=1e-5)
    assert stats["policy/ratio_mean"] == pytest.approx(torch.tensor(0.1).exp().item(), rel=1e-5)
    assert stats["policy/advantages_std"] == pytest.approx(rollout.advantages[tokens].std().item(), rel=1e-5)
    assert stats["skipped"] == 0
    assert all(figure.shape == () and not figure.requires_grad for figure in stats.values())


def test_a_skipped_minibatch_says_so(rollout):
    assert losses(rollout, 5.0)["skipped"] == 1
