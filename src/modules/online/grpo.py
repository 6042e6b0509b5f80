"""Group relative policy optimisation: several answers per prompt with their group as baseline, and KL in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from src.models.policy import TokenFigures
from src.modules.online.base import MethodLoss, OnlineModule
from src.modules.online.buffer import Minibatch, Unit
from src.rewards import Reward
from src.rl.config import GroupConfig
from src.rl.group_losses import LOSS_TYPES, LossType, aggregate, grpo_token_loss
from src.rl.groups import SCALE_REWARDS, ScaleRewards, group_advantages
from src.rl.masked import masked_mean
from src.rl.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(GroupConfig):
    """GRPO's hyper-parameters; names and defaults are TRL 1.16's.

    Attributes:
        scale_rewards: Divide advantages by the standard deviation of the rewards of a `group`, of the `batch`, or not
            (`none`).
        loss_type: How the losses of tokens are reduced: grpo, bnpo, dr_grpo or dapo (`src.rl.group_losses.aggregate`).
        use_bias_correction_kl: Multiply the KL by the probability ratio.
    """

    num_generations: int = 8
    beta: float = 0.0
    scale_rewards: ScaleRewards = "group"
    loss_type: LossType = "dapo"
    use_bias_correction_kl: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("scale_rewards", f"one of {', '.join(SCALE_REWARDS)}", self.scale_rewards in SCALE_REWARDS)
        self._require("loss_type", f"one of {', '.join(LOSS_TYPES)}", self.loss_type in LOSS_TYPES)


class GRPOModule(OnlineModule):
    """Trains an encoder-decoder or decoder-only model by GRPO (https://arxiv.org/abs/2402.03300) on any reward.

    Args:
        model_name_or_path: A hub name, a model directory or an adapter directory, which is then trained further.
        reward: Scores responses; see docs/rewards.md.
        grpo: GRPO's hyper-parameters.
        **kwargs: The arguments of every online method (`OnlineModule`).
    """

    config: GRPOConfig

    def __init__(self, model_name_or_path: str, reward: Reward, grpo: GRPOConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model_name_or_path, reward, config=grpo or GRPOConfig(), **kwargs)

    @property
    def unit(self) -> Unit:  # type: ignore[override]
        """What the loss averages over."""
        units: dict[str, Unit] = {"bnpo": "tokens", "dapo": "rollout"}
        return units.get(self.config.loss_type, "responses")

    def advantages(self, rollout: Rollout) -> tuple[Rollout, dict[str, float]]:
        """Group-relative advantages, the same for every token of a response."""
        scores, size = rollout.shaped_scores, self.config.num_generations
        advantages = group_advantages(scores, size, self.config.scale_rewards)
        groups = scores.view(-1, size)
        equal = (groups == groups[:, :1]).all(dim=1)
        figures = {"grpo/groups_without_signal": float(equal.float().mean())}
        return self.config.with_advantages(rollout, advantages), figures

    def loss(self, minibatch: Minibatch, new: TokenFigures) -> MethodLoss:
        """The clipped objective and the KL of every token, and the entropy bonus."""
        rollout, config = minibatch.rollout, self.config
        mask = rollout.response_mask
        tokens = grpo_token_loss(
            new.logprobs,
            rollout.logprobs,
            rollout.ref_logprobs,
            rollout.advantages[:, 0],
            mask,
            beta=config.beta,
            epsilon=config.epsilon,
            epsilon_high=config.epsilon_high,
            use_bias_correction_kl=config.use_bias_correction_kl,
        )
        loss = aggregate(
            tokens.loss,
            mask,
            config.loss_type,
            max_new_tokens=self.rollout.output_max_length,
            tokens_per_minibatch=minibatch.tokens_per_minibatch,
        )
        entropy = masked_mean(new.entropy, mask)
        return MethodLoss(
            loss - config.entropy_coef * entropy,
            {"grpo/loss": loss.detach()},
            {
                "grpo/entropy": entropy.detach(),
                "grpo/clip_ratio_low": masked_mean(tokens.low.float(), mask),
                "grpo/clip_ratio_high": masked_mean(tokens.high.float(), mask),
            },
        )
