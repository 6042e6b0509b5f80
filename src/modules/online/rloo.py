"""REINFORCE with a leave-one-out baseline: several answers per prompt, each compared with the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from src.models.policy import TokenFigures
from src.modules.online.base import MethodLoss, OnlineModule
from src.modules.online.buffer import Minibatch
from src.rewards import Reward
from src.rl.config import GroupConfig
from src.rl.group_losses import rloo_loss
from src.rl.groups import leave_one_out_advantages
from src.rl.kl import sequence_kl
from src.rl.masked import masked_mean
from src.rl.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(GroupConfig):
    """RLOO's hyper-parameters; names and defaults are TRL 1.16's.

    Attributes:
        normalize_advantages: Bring the advantages of an iteration to mean 0 and standard deviation 1.
    """

    normalize_advantages: bool = False


class RLOOModule(OnlineModule):
    """Trains an encoder-decoder or decoder-only model by RLOO (https://arxiv.org/abs/2402.14740) on any reward.

    The reward of a response is its score minus `beta` times its KL to the reference; its advantage is that reward minus
    the mean reward of the other responses to the same prompt.

    Args:
        model_name_or_path: A hub name, a model directory or an adapter directory, which is then trained further.
        reward: Scores responses; see docs/rewards.md.
        rloo: RLOO's hyper-parameters.
        **kwargs: The arguments of every online method (`OnlineModule`).
    """

    config: RLOOConfig
    unit = "responses"

    def __init__(self, model_name_or_path: str, reward: Reward, rloo: RLOOConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model_name_or_path, reward, config=rloo or RLOOConfig(), **kwargs)

    def advantages(self, rollout: Rollout) -> tuple[Rollout, dict[str, float]]:
        """Leave-one-out advantages, the same for every token of a response."""
        config = self.config
        kl = sequence_kl(rollout.logprobs - rollout.ref_logprobs, rollout.response_mask)
        rewards = rollout.shaped_scores - config.beta * kl
        advantages = leave_one_out_advantages(rewards, config.num_generations, normalize=config.normalize_advantages)
        return config.with_advantages(rollout, advantages), {"rloo/reward": float(rewards.mean())}

    def loss(self, minibatch: Minibatch, new: TokenFigures) -> MethodLoss:
        """The clipped objective of whole responses, and the entropy bonus."""
        rollout, config = minibatch.rollout, self.config
        mask = rollout.response_mask
        responses = rloo_loss(
            new.logprobs,
            rollout.logprobs,
            rollout.advantages[:, 0],
            mask,
            epsilon=config.epsilon,
            epsilon_high=config.epsilon_high,
        )
        entropy = masked_mean(new.entropy, mask)
        loss = responses.loss.mean()
        return MethodLoss(
            loss - config.entropy_coef * entropy,
            {
                "rloo/loss": loss.detach(),
                "rloo/clip_ratio_low": responses.low.float().mean(),
                "rloo/clip_ratio_high": responses.high.float().mean(),
            },
            {"rloo/entropy": entropy.detach()},
        )
