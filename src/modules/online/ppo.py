"""Proximal policy optimisation: a value head, and KL to a reference in the reward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from src.models.policy import TokenFigures
from src.models.tying import hidden_size
from src.models.value_head import ValueHead
from src.modules.online.base import MethodLoss, OnlineModule
from src.modules.online.buffer import Minibatch
from src.rewards import Reward
from src.rl.advantages import compose_rewards, compute_advantages
from src.rl.config import PPOConfig
from src.rl.kl import sequence_kl
from src.rl.losses import ppo_loss
from src.rl.masked import masked_mean
from src.rl.pooling import pool_ppo_stats
from src.rl.rollout import Rollout


class PPOModule(OnlineModule):
    """Trains an encoder-decoder or decoder-only model by PPO (https://arxiv.org/abs/1707.06347) on any reward.

    Args:
        model_name_or_path: A hub name, a model directory or an adapter directory, which is then trained further.
        reward: Scores responses; see docs/rewards.md.
        ppo: PPO's hyper-parameters.
        **kwargs: The arguments of every online method (`OnlineModule`).
    """

    config: PPOConfig
    unit = "tokens"

    def __init__(self, model_name_or_path: str, reward: Reward, ppo: PPOConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model_name_or_path, reward, config=ppo or PPOConfig(), **kwargs)
        self.kl_controller = self.config.kl_controller()

    def add_heads(self) -> None:
        """Add the value head."""
        self.value_head = ValueHead(hidden_size(self.policy), self.config.value_head_init)

    @property
    def learning_rates(self) -> dict[str, float]:
        """The value head's learning rate, if it is set separately."""
        rate = self.config.value_head_lr
        return {} if rate is None else {"value_head.": rate}

    def advantages(self, rollout: Rollout) -> tuple[Rollout, dict[str, float]]:
        """GAE over the score on the last token and the KL penalty on every one; then update the KL coefficient."""
        assert rollout.values is not None
        config, mask, kl_coef = self.config, rollout.response_mask, self.kl_controller.value
        scores = rollout.shaped_scores
        rewards = compose_rewards(scores, rollout.logprobs, rollout.ref_logprobs, mask, kl_coef, config.kl_penalty)
        learned = compute_advantages(
            rewards.rewards,
            rollout.values,
            mask,
            gamma=config.gamma,
            lam=config.lam,
            whiten_rewards=config.whiten_rewards,
            whiten_advantages=config.whiten_advantages,
        )
        self.kl_controller.update(float(sequence_kl(rewards.kl, mask).mean()), len(rollout))
        return replace(rollout, advantages=learned.advantages, returns=learned.returns), {
            "objective/kl_coef": kl_coef,
            "ppo/mean_non_score_reward": float(masked_mean(rewards.non_score_rewards, mask)),
            "ppo/mean_scores": float(scores.mean()),
            "ppo/std_scores": float(scores.std()) if len(scores) > 1 else 0.0,
        }

    def loss(self, minibatch: Minibatch, new: TokenFigures) -> MethodLoss:
        """Policy loss, value loss and entropy bonus."""
        rollout, config = minibatch.rollout, self.config
        assert rollout.values is not None
        assert rollout.returns is not None
        loss = ppo_loss(
            new.logprobs,
            new.values,
            new.entropy,
            old_logprobs=rollout.logprobs,
            old_values=rollout.values,
            advantages=rollout.advantages,
            returns=rollout.returns,
            mask=rollout.response_mask,
            cliprange=config.cliprange,
            cliprange_value=config.cliprange_value,
            vf_coef=config.vf_coef,
            entropy_coef=config.entropy_coef,
            ratio_threshold=config.ratio_threshold,
        )
        return MethodLoss(loss.total, {f"ppo/{name}": figure for name, figure in loss.stats.items()})

    def pool(self, stats: dict[str, Tensor], weights: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Pool PPO's metrics, among them variances and the greatest ratio."""
        pooled = pool_ppo_stats({name.removeprefix("ppo/"): figure for name, figure in stats.items()}, tokens)
        return {f"ppo/{name}": figure for name, figure in pooled.items()}

    def state(self) -> dict[str, Any]:
        """The state with that of the KL controller."""
        return super().state() | {"kl_controller": self.kl_controller.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state with that of the KL controller."""
        super().load_state(state)
        self.kl_controller.load_state_dict(state["kl_controller"])
