"""The functions together: PPO on a policy that is a table of logits, rewarded for the share of one token."""

import pytest
import torch

from src.rl.config import PPOConfig
from src.rl.drawable import Drawable
from src.rl.logprobs import logprobs_from_hidden
from src.rl.losses import exceeds_target_kl, ppo_loss
from src.rl.rollout import build_rollout
from src.rl.stats import rollout_stats, update_stats

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
    controller, shaper = config.kl_controller(), config.score_shaper()
    history = []

    def evaluate(ids, entropy_requires_grad=False):
        expanded = policy.expand(ids.shape[0], -1, -1)[:, : ids.shape[1]]
        scores = logprobs_from_hidden(expanded, ids, torch.nn.Identity(), entropy_requires_grad=entropy_requires_grad)
        return scores, value_head[: ids.shape[1]].expand(ids.shape[0], -1)

    for _ in range(iterations):
        with torch.no_grad():
            ids, mask, has_eos = sample(policy, batch, generator)
            scores, values = evaluate(ids)
            ref_logprobs = logprobs_from_hidden(reference.expand(batch, -1, -1), ids, torch.nn.Identity()).logprobs
        rewards = ((ids == WANTED) * mask).sum(-1) / TIME
        queries = torch.ones(batch, 1, dtype=torch.long)
        rollout = build_rollout(
            query_ids=queries,
            query_mask=queries,
            response_ids=ids,
            response_mask=mask,
            drawable=Drawable.everything(*ids.shape),
            logprobs=scores.logprobs,
            ref_logprobs=ref_logprobs,
            values=values,
            scores=rewards,
            shaped_scores=shaper(rewards, has_eos),
            kl_coef=controller.value,
            config=config,
        )
        losses, stop = [], False
        for _ in range(config.ppo_epochs):
            for rows in torch.randperm(batch, generator=generator).split(config.minibatch_size):
                minibatch = rollout.select(rows)
                now, values = evaluate(minibatch.response_ids, entropy_requires_grad=config.entropy_coef > 0)
                loss = ppo_loss(
                    now.logprobs,
                    values,
                    now.entropy,
                    old_logprobs=minibatch.logprobs,
                    old_values=minibatch.values,
                    advantages=minibatch.advantages,
                    returns=minibatch.returns,
                    mask=minibatch.response_mask,
                    cliprange=config.cliprange,
                    cliprange_value=config.cliprange_value,
                    vf_coef=config.vf_coef,
                    entropy_coef=config.entropy_coef,
                    ratio_threshold=config.ratio_threshold,
                )
                losses.append(loss)
                optimizer.zero_grad()
                loss.total.backward()
                optimizer.step()
                stop = stop or exceeds_target_kl(loss.stats["policy/policykl"], config.target_kl)
            if stop:
                break
        stats = rollout_stats(rollout, controller.value) | update_stats(losses)
        controller.update(stats["objective/kl"], batch)
        history.append(stats | {"updates": len(losses)})
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


def test_the_adaptive_controller_holds_kl_near_its_target():
    config = PPOConfig(init_kl_coef=0.01, target=1.0, horizon=200.0, minibatch_size=16, ppo_epochs=2)
    history = train(config, seed=0, iterations=140)
    late = [stats["objective/kl"] for stats in history[-50:]]
    assert sum(late) / len(late) == pytest.approx(1.0, abs=0.35)


def test_a_target_kl_ends_updates_early():
    free = train(PPOConfig(ppo_epochs=4, minibatch_size=16), 0, iterations=10, lr=0.3)
    held = train(PPOConfig(ppo_epochs=4, minibatch_size=16, target_kl=1e-3), 0, iterations=10, lr=0.3)
    assert all(stats["updates"] == 8 for stats in free)
    assert min(stats["updates"] for stats in held) == 2
