"""Hyper-parameters of the online methods."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from src.errors import ParleyError
from src.ranges import COUNT, NOT_NEGATIVE, POSITIVE, UNIT, Range, refuse_outside
from src.rl.kl import KL_PENALTIES, AdaptiveKLController, FixedKLController, KLController, KLPenalty
from src.rl.masked import zero_outside
from src.rl.rollout import Rollout
from src.rl.scores import ScoreShaper

ABOVE_0_OR_NULL = Range(0, above=True, note="null leaves it off")


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """Hyper-parameters shared by all methods that learn from their own answers.

    The learning rate belongs to the optimiser, the number of prompts an iteration to the DataModule's batch size,
    accumulation and clipping of gradients to the trainer.

    Attributes:
        num_generations: Responses to each prompt.
        minibatch_size: Responses in each forward and backward pass.
        entropy_coef: Weight of the entropy bonus.
        target_kl: Stop training on a rollout once the policy's KL to the policy that sampled it exceeds 1.5 times this,
            in nats per token; never when left out.
        use_score_scaling: Divide scores by their running standard deviation.
        use_score_norm: With scaling, subtract their running mean too.
        score_clip: Clip scores to ± this; no clipping when left out.
        missing_eos_penalty: Subtracted from the score of a response that was cut off before EOS; nothing when left out.
    """

    num_generations: int = 1
    minibatch_size: int = 4
    entropy_coef: float = 0.0
    target_kl: float | None = None
    use_score_scaling: bool = False
    use_score_norm: bool = False
    score_clip: float | None = None
    missing_eos_penalty: float | None = None

    def __post_init__(self) -> None:
        self._refuse_outside(COUNT, "num_generations", "minibatch_size")
        self._refuse_outside(NOT_NEGATIVE, "entropy_coef")
        self._refuse_outside(ABOVE_0_OR_NULL, "target_kl", "score_clip")
        self._refuse_outside(Range(0, note="null leaves it off"), "missing_eos_penalty")
        if self.use_score_norm and not self.use_score_scaling:
            name = self._section
            raise ParleyError(
                f"{name}.use_score_norm works on scaled scores only; set {name}.use_score_scaling to true too."
            )

    @property
    def passes(self) -> int:
        """Passes over each rollout."""
        return 1

    @property
    def _section(self) -> str:
        """The configuration's name in YAML, such as `ppo`."""
        return type(self).__name__.removesuffix("Config").lower()

    def score_shaper(self) -> ScoreShaper:
        """The score shaper with this configuration's settings."""
        return ScoreShaper(self.use_score_scaling, self.use_score_norm, self.score_clip, self.missing_eos_penalty)

    def _require(self, name: str, what: str, holds: bool) -> None:
        if not holds:
            raise ParleyError(f"{self._section}.{name} is {getattr(self, name)!r}; it must be {what}.")

    def _refuse_outside(self, allowed: Range, *names: str) -> None:
        refuse_outside(self, dict.fromkeys(names, allowed), f"{self._section}.")


@dataclass(frozen=True, kw_only=True)
class PPOConfig(OnlineConfig):
    """PPO's hyper-parameters; the defaults are those of the published detoxification recipe on TRL 0.11.4.

    Attributes:
        ppo_epochs: Passes over each rollout.
        gamma: Discount.
        lam: GAE's lambda.
        cliprange: How far the probability ratio may be from 1 before it is clipped.
        cliprange_value: How far a value may move from its old one before it is clipped.
        vf_coef: Weight of the value loss.
        value_head_init: The value head's initial weights: `zero`, `random`, or the head of a reward model, given by its
            directory or hub name.
        value_head_lr: The value head's own learning rate, scaled by the schedule like the optimiser's; the optimiser's
            when left out.
        kl_penalty: Estimator of KL to the reference: kl, abs, mse or k3.
        init_kl_coef: Coefficient of the KL penalty; its first value if adaptive.
        adaptive_kl: Adapt the coefficient to bring KL to `target`; it is fixed otherwise.
        target: The mean KL of a whole response to aim for, in nats.
        horizon: The number of responses over which the coefficient may change by 20 %.
        whiten_rewards: Scale rewards per token to variance 1 over the global batch.
        whiten_advantages: Whiten advantages over the global batch.
        ratio_threshold: Skip a minibatch whose mean probability ratio exceeds this; never when left out.
    """

    ppo_epochs: int = 1
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    value_head_init: str = "zero"
    value_head_lr: float | None = None
    kl_penalty: KLPenalty = "kl"
    init_kl_coef: float = 0.2
    adaptive_kl: bool = True
    target: float = 6.0
    horizon: float = 10_000.0
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    ratio_threshold: float | None = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_outside(COUNT, "ppo_epochs")
        self._refuse_outside(UNIT, "gamma", "lam")
        self._refuse_outside(POSITIVE, "cliprange", "cliprange_value", "target", "horizon")
        self._refuse_outside(NOT_NEGATIVE, "vf_coef", "init_kl_coef")
        self._refuse_outside(ABOVE_0_OR_NULL, "ratio_threshold", "value_head_lr")
        self._require("kl_penalty", f"one of {', '.join(KL_PENALTIES)}", self.kl_penalty in KL_PENALTIES)

    @property
    def passes(self) -> int:
        """Passes over each rollout."""
        return self.ppo_epochs

    def kl_controller(self) -> KLController:
        """The KL controller with this configuration's settings."""
        if self.adaptive_kl:
            return AdaptiveKLController(self.init_kl_coef, self.target, self.horizon)
        return FixedKLController(self.init_kl_coef)


@dataclass(frozen=True, kw_only=True)
class GroupConfig(OnlineConfig):
    """Hyper-parameters shared by RLOO and GRPO; names and defaults are TRL 1.16's.

    Attributes:
        num_iterations: Passes over each rollout.
        beta: Weight of the KL to the reference.
        epsilon: How far below 1 a probability ratio may be before it is clipped.
        epsilon_high: How far above 1 it may be; `epsilon` when left out.
        mask_truncated_completions: Leave responses that were cut off before EOS out of the loss.
    """

    num_generations: int = 2
    num_iterations: int = 1
    beta: float = 0.05
    epsilon: float = 0.2
    epsilon_high: float | None = None
    mask_truncated_completions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_outside(Range(2, note="answers to a prompt are compared"), "num_generations")
        self._refuse_outside(COUNT, "num_iterations")
        self._refuse_outside(NOT_NEGATIVE, "beta")
        self._refuse_outside(Range(0, 1, above=True), "epsilon")
        self._refuse_outside(ABOVE_0_OR_NULL, "epsilon_high")

    @property
    def passes(self) -> int:
        """Passes over each rollout."""
        return self.num_iterations

    def with_advantages(self, rollout: Rollout, advantages: Tensor) -> Rollout:
        """The rollout with each response's advantage at all its tokens, and cut-off responses masked if asked for.

        Args:
            rollout: The responses.
            advantages: The advantage of each response, (batch,).
        """
        mask = rollout.response_mask
        if self.mask_truncated_completions:
            mask = mask * rollout.has_eos.unsqueeze(-1)
        spread = zero_outside(advantages.unsqueeze(-1).expand(mask.shape), mask)
        return replace(rollout, advantages=spread, response_mask=mask)
