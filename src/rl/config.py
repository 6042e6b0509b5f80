"""PPO's hyper-parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from src.errors import ParleyError
from src.rl.kl import KL_PENALTIES, AdaptiveKLController, FixedKLController, KLController, KLPenalty
from src.rl.scores import ScoreShaper


@dataclass(frozen=True)
class PPOConfig:
    """PPO's hyper-parameters; the defaults are those of the published detoxification recipe on TRL 0.11.4.

    The learning rate belongs to the optimiser, the number of prompts an iteration to the DataModule's batch size.

    Attributes:
        ppo_epochs: Passes over each rollout.
        minibatch_size: Responses in each forward and backward pass.
        gradient_accumulation_steps: Minibatches in each optimiser step.
        max_grad_norm: Clip the norm of the gradient to this; no clipping when left out.
        gamma: Discount.
        lam: GAE's lambda.
        cliprange: How far the probability ratio may be from 1 before its gradient ends.
        cliprange_value: How far a value may move from its old one before its gradient ends.
        vf_coef: Weight of the value loss.
        entropy_coef: Weight of the entropy bonus.
        kl_penalty: Estimator of KL to the reference: kl, abs, mse or k3.
        init_kl_coef: Coefficient of the KL penalty, where adaptive its first.
        adaptive_kl: Steer the coefficient towards `target`; fixed otherwise.
        target: Mean KL of a whole response to steer towards, in nats.
        horizon: Over how many responses the coefficient may change by 20 %.
        whiten_rewards: Scale rewards per token to variance 1 over the global batch.
        whiten_advantages: Whiten advantages over the global batch.
        ratio_threshold: Skip a minibatch whose mean probability ratio exceeds this; never when left out.
        target_kl: Leave the update once the policy's KL to the one that sampled exceeds 1.5 times this, in nats a
            token; never when left out.
        use_score_scaling: Divide scores by their running standard deviation.
        use_score_norm: With scaling, take off their running mean too.
        score_clip: Clip scores to ± this; no clipping when left out.
        missing_eos_penalty: Taken off the score of a response that was cut off before EOS; nothing when left out.
    """

    ppo_epochs: int = 1
    minibatch_size: int = 4
    gradient_accumulation_steps: int = 1
    max_grad_norm: float | None = None
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    entropy_coef: float = 0.0
    kl_penalty: KLPenalty = "kl"
    init_kl_coef: float = 0.2
    adaptive_kl: bool = True
    target: float = 6.0
    horizon: float = 10_000.0
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    ratio_threshold: float | None = 10.0
    target_kl: float | None = None
    use_score_scaling: bool = False
    use_score_norm: bool = False
    score_clip: float | None = None
    missing_eos_penalty: float | None = None

    def __post_init__(self) -> None:
        for name in ("ppo_epochs", "minibatch_size", "gradient_accumulation_steps"):
            self._require(name, "at least 1", getattr(self, name) >= 1)
        for name in ("gamma", "lam"):
            self._require(name, "between 0 and 1", 0 <= getattr(self, name) <= 1)
        for name in ("cliprange", "cliprange_value", "target", "horizon"):
            self._require(name, "above 0", getattr(self, name) > 0)
        for name in ("vf_coef", "entropy_coef", "init_kl_coef"):
            self._require(name, "0 or more", 0 <= getattr(self, name) < math.inf)
        for name in ("max_grad_norm", "ratio_threshold", "target_kl", "score_clip"):
            value = getattr(self, name)
            self._require(name, "above 0, or null to leave it off", value is None or value > 0)
        penalty = self.missing_eos_penalty
        self._require("missing_eos_penalty", "0 or more, or null to leave it off", penalty is None or penalty >= 0)
        self._require("kl_penalty", f"one of {', '.join(KL_PENALTIES)}", self.kl_penalty in KL_PENALTIES)
        if self.use_score_norm and not self.use_score_scaling:
            raise ParleyError("ppo.use_score_norm works on scaled scores only; set ppo.use_score_scaling to true too.")

    def kl_controller(self) -> KLController:
        """Make the controller that this configuration asks for."""
        if self.adaptive_kl:
            return AdaptiveKLController(self.init_kl_coef, self.target, self.horizon)
        return FixedKLController(self.init_kl_coef)

    def score_shaper(self) -> ScoreShaper:
        """Make the score shaper that this configuration asks for."""
        return ScoreShaper(self.use_score_scaling, self.use_score_norm, self.score_clip, self.missing_eos_penalty)

    def _require(self, name: str, what: str, holds: bool) -> None:
        if not holds:
            raise ParleyError(f"ppo.{name} is {getattr(self, name)!r}; it must be {what}.")
