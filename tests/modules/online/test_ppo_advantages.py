"""What PPO makes of responses before it learns from them."""

from dataclasses import replace

import pytest
import torch

from src.modules import PPOModule
from src.rewards import LengthReward
from src.rl.config import PPOConfig
from src.rl.drawable import Drawable
from src.rl.rollout import Rollout

LENGTHS = [3, 6, 0, 1, 4]


@pytest.fixture
def rollout():
    generator = torch.Generator().manual_seed(10)
    mask = (torch.arange(8) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    logprobs, ref_logprobs, values = torch.randn(3, 5, 8, generator=generator) * mask
    return Rollout(
        index=torch.arange(5),
        query_ids=torch.ones(5, 7, dtype=torch.long),
        query_mask=torch.ones(5, 7, dtype=torch.long),
        response_ids=torch.ones(5, 8, dtype=torch.long),
        response_mask=mask,
        has_eos=torch.ones(5, dtype=torch.bool),
        drawable=Drawable.everything(5, 8),
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        scores=torch.arange(5.0),
        shaped_scores=torch.arange(5.0) / 2,
        advantages=torch.zeros(5, 8),
        values=values,
        returns=torch.zeros(5, 8),
    )


def learned(rollout, **config):
    return PPOModule("no model", LengthReward(5), ppo=PPOConfig(**config)).advantages(rollout)


def test_scores_and_kl_make_up_the_returns(rollout):
    """Undiscounted and with lambda 1, a token's return is all that is rewarded from there on."""
    filled, figures = learned(rollout, whiten_advantages=False, lam=1.0)
    mask, kl = rollout.response_mask, rollout.logprobs - rollout.ref_logprobs
    rewards = -0.2 * kl
    for row, length in enumerate(LENGTHS):
        if length:
            rewards[row, length - 1] += row / 2
    expected = rewards.flip(-1).cumsum(-1).flip(-1) * mask
    torch.testing.assert_close(filled.returns, expected)
    torch.testing.assert_close(filled.returns, (filled.advantages + rollout.values) * mask)
    for tensor in (filled.advantages, filled.returns):
        assert not tensor[mask == 0].any()
    assert figures["objective/kl_coef"] == 0.2
    assert figures["ppo/mean_non_score_reward"] == pytest.approx(-0.2 * float(kl.sum()) / sum(LENGTHS), rel=1e-5)
    assert figures["ppo/mean_scores"] == 1.0


def test_advantages_are_whitened_over_all_responses(rollout):
    advantages = learned(rollout)[0].advantages[rollout.response_mask.bool()]
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-6)
    assert float(advantages.var()) == pytest.approx(1, abs=1e-4)


def test_the_configuration_reaches_the_mathematics(rollout):
    plain, _ = learned(rollout)
    assert not torch.equal(learned(rollout, kl_penalty="k3")[0].returns, plain.returns)
    assert not torch.equal(learned(rollout, init_kl_coef=0.1)[0].returns, plain.returns)
    assert not torch.equal(learned(rollout, lam=0.5)[0].advantages, plain.advantages)
    assert not torch.equal(learned(rollout, gamma=0.5)[0].returns, plain.returns)
    assert not torch.equal(learned(rollout, whiten_rewards=True)[0].returns, plain.returns)
    assert not torch.equal(learned(rollout, whiten_advantages=False)[0].advantages, plain.advantages)


def test_half_precision_comes_out_as_float32(rollout):
    filled, _ = learned(replace(rollout, values=rollout.values.bfloat16()))
    assert filled.advantages.dtype == filled.returns.dtype == torch.float32


def test_the_controller_takes_in_the_kl_of_whole_responses(rollout):
    module = PPOModule("no model", LengthReward(5), ppo=PPOConfig(target=1.0, horizon=100.0))
    module.advantages(rollout)
    kl = float((rollout.logprobs - rollout.ref_logprobs).sum(-1).mean())
    assert module.kl_controller.value == pytest.approx(0.2 * (1 + min(max(kl - 1, -0.2), 0.2) * 5 / 100))
