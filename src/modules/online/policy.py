"""The base of policies that sample answers and have them scored by a reward."""

from __future__ import annotations

from typing import Any

from src.models.reference import Reference
from src.models.rollout import RolloutOptions
from src.modules.online.collector import Collector
from src.modules.policy import PolicyModule
from src.rewards import Reward
from src.rl.config import OnlineConfig


class SamplingModule(PolicyModule):
    """A policy with its reference, its reward, and a way to sample answers.

    Args:
        model_name_or_path: A hub name, a model directory or an adapter directory, which is then trained further.
        reward: Scores responses; see docs/rewards.md.
        config: The method's hyper-parameters.
        rollout: How responses are sampled for training.
        **kwargs: The other arguments of `PolicyModule`.
    """

    reward: Reward
    reference: Reference
    collector: Collector

    def __init__(
        self,
        model_name_or_path: str,
        reward: Reward,
        config: OnlineConfig,
        rollout: RolloutOptions | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, reward, **kwargs)
        self.config = config
        self.rollout = rollout or RolloutOptions()

    def configure_model(self) -> None:
        """Load the policy, keep its reference, and add the method's heads."""
        if self.model is not None:
            return
        super().configure_model()
        self.rollout.refuse(self.policy, in_shards=self.in_shards)
        self.add_heads()
        self.collector = Collector(
            self.policy,
            self.reference,
            self.tokenizer,
            self.reward,
            self.rollout,
            self.config.num_generations,
            self.value_head,
        )

    def add_heads(self) -> None:
        """Add modules that the method trains beside the policy, such as a value head."""
