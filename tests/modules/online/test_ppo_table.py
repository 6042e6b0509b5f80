"""PPO's advantages, buffer and loss together, on a policy that is a table of logits, rewarded for one token's share."""

import pytest
import torch

from src.models.policy import TokenFigures
from src.modules import PPOModule
from src.modules.online.buffer import RolloutBuffer
from src.rewards import LengthReward
from src.rl.config import PPOConfig
from src.rl.drawable import Drawable
from src.rl.logprobs import logprobs_from_hidden
from src.rl.rollout import Rollout
from src.rl.stats import rollout_stats

TIME, VOCABULARY, EOS, WANTED = 6, 8, 0, 3


def sample(logits, batch, generator):
    ids = torch.multinomial(logits.softmax(-1), batch, replacement=True, generator=generator).T
    ended = (ids == EOS).cumsum(-1)
    mask = (ended - (ids == EOS).long() == 0).long()
    return ids, mask, ended[:, -1] > 0


def train(config, seed, iterations=80, batch=32, lr=0.1):
    generator = torch.Generator().manual_seed(seed)
    reference = 0.1 * torch.randn(TIME, VOCABULARY, generator=generator)
    policy, value_head = reference.clone().requires_grad_(), torch.zeros(TIME, requires_grad=True)
    optimizer = torch.optim.Adam([policy, value_head], lr=lr)
    module, buffer, history = PPOModule("a table", LengthReward(5), ppo=config), RolloutBuffer(seed), []

    def evaluate(ids, entropy_requires_grad=False):
        expanded = policy.expand(ids.shape[0], -1, -1)[:, : ids.shape[1]]
        scores = logprobs_from_hidden(expanded, ids, torch.nn.Identity(), entropy_requires_grad=entropy_requires_grad)
        return scores, value_head[: ids.shape[1]].expand(ids.shape[0], -1)

    for _ in range(iterations):
        with torch.no_grad():
            ids, mask, has_eos = sample(policy, batch, generator)
            scores, values = evaluate(ids)
            values = values.clone()
            ref_logprobs = logprobs_from_hidden(reference.expand(batch, -1, -1), ids, torch.nn.Identity()).logprobs
        rewards = ((ids == WANTED) * mask).sum(-1) / TIME
        queries = torch.ones(batch, 1, dtype=torch.long)
        rollout, figures = module.advantages(
            Rollout(
                index=torch.zeros(batch, dtype=torch.long),
                query_ids=queries,
                query_mask=queries,
                response_ids=ids,
                response_mask=mask,
                has_eos=has_eos,
                drawable=Drawable.everything(*ids.shape),
                logprobs=scores.logprobs,
                ref_logprobs=ref_logprobs,
                scores=rewards,
                shaped_scores=module.score_shaper(rewards, has_eos),
                advantages=torch.zeros_like(values),
                values=values,
                returns=torch.zeros_like(values),
            )
        )
        buffer.fill(rollout)
        minibatches = batch // config.minibatch_size
        while not buffer.ended(config.passes * minibatches):
            minibatch = buffer.next(minibatches=minibatches, unit="tokens")
            now, values = evaluate(minibatch.rollout.response_ids, entropy_requires_grad=config.entropy_coef > 0)
            optimizer.zero_grad()
            module.loss(minibatch, TokenFigures(now.logprobs, now.entropy, values)).total.backward()
            optimizer.step()
        history.append(rollout_stats(rollout) | figures)
    return history


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_solves_the_share_of_one_token(seed):
    config = PPOConfig(init_kl_coef=0.0, adaptive_kl=False, minibatch_size=16, ppo_epochs=2)
    history = train(config, seed)
    assert history[0]["objective/kl"] == 0  # the policy is its reference: exactly
    assert history[0]["env/reward_mean"] < 0.2
    assert history[-1]["env/reward_mean"] > 0.9


def test_a_large_kl_coefficient_keeps_it_where_it_was():
    config = PPOConfig(init_kl_coef=100.0, adaptive_kl=False, minibatch_size=16, ppo_epochs=2)
    history = train(config, seed=0, iterations=40, lr=0.005)
    assert max(abs(stats["objective/kl"]) for stats in history) < 0.1
    assert history[-1]["env/reward_mean"] < 0.3


@pytest.mark.slow
def test_the_adaptive_controller_holds_kl_near_its_target():
    config = PPOConfig(init_kl_coef=0.01, target=1.0, horizon=200.0, minibatch_size=16, ppo_epochs=2)
    history = train(config, seed=0, iterations=140)
    late = [stats["objective/kl"] for stats in history[-50:]]
    assert sum(late) / len(late) == pytest.approx(1.0, abs=0.35)
