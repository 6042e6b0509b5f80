"""Losses on preference pairs, two answers to a prompt of which one is better: DPO and related methods.

Every function returns one value per pair. They take log-probabilities of whole answers, in nats, summed or averaged
over an answer's tokens, as each loss was published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from src.errors import ParleyError
from src.ranges import NOT_NEGATIVE, POSITIVE, Range, refuse_outside

LossType = Literal["sigmoid", "robust", "hinge", "ipo", "simpo", "orpo"]
REFERENCE_FREE = frozenset({"simpo", "orpo"})
SMOOTHED = frozenset({"sigmoid", "robust", "simpo"})


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """The hyper-parameters of DPO and related methods; names and defaults are TRL 1.16's.

    Attributes:
        loss_type: `sigmoid` (DPO, https://arxiv.org/abs/2305.18290), `robust` (https://arxiv.org/abs/2403.00409),
            `hinge` (SLiC, https://arxiv.org/abs/2305.10425), `ipo` (https://arxiv.org/abs/2310.12036), and, without a
            reference, `simpo` (https://arxiv.org/abs/2405.14734) and `orpo` (https://arxiv.org/abs/2403.07691).
        beta: Strength of the regularisation towards the reference; IPO's tau, SimPO's beta, ORPO's lambda.
        label_smoothing: The assumed share of pairs whose labels are swapped; for `sigmoid` (conservative DPO), `robust`
            and `simpo`.
        simpo_gamma: SimPO's target margin.
        rpo_alpha: Weight of the cross-entropy of the chosen answers, added to the loss; not added when left out. ORPO
            always adds it with weight 1.
        sft_on: The tokens that this cross-entropy averages over: those of the `response`, or `all`, including a
            decoder-only model's prompt. When left out, as in TRL, `all` for ORPO and `response` otherwise.
        reference: Source of the reference's log-probabilities: the `model` that training started from, or `cached`,
            computed once before training and kept on disk.
    """

    loss_type: LossType = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    simpo_gamma: float = 0.5
    rpo_alpha: float | None = None
    sft_on: Literal["response", "all"] | None = None
    reference: Literal["model", "cached"] = "model"

    def __post_init__(self) -> None:
        refuse_outside(self, {"beta": POSITIVE, "label_smoothing": Range(0, 0.5), "rpo_alpha": NOT_NEGATIVE}, "dpo.")
        refuse_outside(self, {"simpo_gamma": NOT_NEGATIVE}, "dpo.")
        for name, allowed in (
            ("loss_type", get_args(LossType)),
            ("sft_on", ("response", "all", None)),
            ("reference", ("model", "cached")),
        ):
            if getattr(self, name) not in allowed:
                known = ", ".join(map(str, filter(None, allowed)))
                raise ParleyError(f"dpo.{name} is {getattr(self, name)!r}; it must be one of {known}.")
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            raise ParleyError(
                f"dpo.label_smoothing is for the losses {', '.join(sorted(SMOOTHED))}, not for {self.loss_type}; "
                "leave it out."
            )
        if self.loss_type == "orpo" and self.rpo_alpha is not None:
            raise ParleyError("orpo has the cross-entropy of the chosen answers at weight 1; leave dpo.rpo_alpha out.")
        if self.sft_on is not None and not self.sft_weight:
            raise ParleyError("dpo.sft_on says what rpo_alpha's cross-entropy is over; set dpo.rpo_alpha, or drop it.")

    @property
    def needs_reference(self) -> bool:
        """Whether the loss needs a reference model."""
        return self.loss_type not in REFERENCE_FREE

    @property
    def sft_weight(self) -> float:
        """The weight of the chosen answers' cross-entropy; 0 if it is not added."""
        return 1.0 if self.loss_type == "orpo" else self.rpo_alpha or 0.0

    @property
    def learns_prompts(self) -> bool:
        """Whether that cross-entropy includes the prompts of a decoder-only model."""
        return (self.sft_on or ("all" if self.loss_type == "orpo" else "response")) == "all"


@dataclass(frozen=True)
class Pairs:
    """Log-probabilities and lengths of the answers of pairs, each of shape (pairs,).

    Attributes:
        chosen: Log-probabilities of the better answers, summed over their tokens.
        rejected: Those of the other answers.
        chosen_length: The number of tokens of the better answers.
        rejected_length: That of the other answers.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    def select(self, rows: Tensor) -> Pairs:
        """The pairs at these indices."""
        return Pairs(self.chosen[rows], self.rejected[rows], self.chosen_length[rows], self.rejected_length[rows])

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Mean log-probabilities per token, of the better answers and of the others."""
        return self.chosen / self.chosen_length.clamp(min=1), self.rejected / self.rejected_length.clamp(min=1)


@dataclass(frozen=True)
class PairLoss:
    """The losses and metrics of pairs, each of shape (pairs,).

    Attributes:
        losses: The loss of each pair, with gradient.
        figures: Metrics to be averaged and logged, under TRL's names and without gradient.
    """

    losses: Tensor
    figures: dict[str, Tensor]


def pair_loss(policy: Pairs, reference: Pairs | None, config: DPOConfig) -> PairLoss:
    """The loss of each pair and its rewards, without the cross-entropy of the chosen answers.

    Args:
        policy: The policy's log-probabilities, with gradient.
        reference: The reference's; None for a loss without a reference.
        config: The loss and its hyper-parameters.
    """
    beta, figures = config.beta, {}
    if reference is None:
        chosen, rejected = policy.means
        shown = chosen, rejected
        if config.loss_type == "simpo":
            losses = sigmoid_loss(beta * (chosen - rejected) - config.simpo_gamma, config.label_smoothing)
        else:
            log_odds = log_odds_ratio(chosen, rejected)
            ratio = F.logsigmoid(log_odds)
            losses = -beta * ratio
            figures = {"log_odds_chosen": log_odds.detach(), "log_odds_ratio": ratio.detach()}
    else:
        chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
        shown = policy.chosen, policy.rejected
        margin = beta * (chosen - rejected)
        if config.loss_type == "sigmoid":
            losses = sigmoid_loss(margin, config.label_smoothing)
        elif config.loss_type == "robust":
            losses = robust_loss(margin, config.label_smoothing)
        elif config.loss_type == "hinge":
            losses = torch.relu(1 - margin)
        else:
            means = chosen / policy.chosen_length.clamp(min=1), rejected / policy.rejected_length.clamp(min=1)
            losses = (means[0] - means[1] - 1 / (2 * beta)).square()
    rewards = beta * chosen.detach(), beta * rejected.detach()
    return PairLoss(
        losses,
        {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/accuracies": (rewards[0] > rewards[1]).float(),
            "rewards/margins": rewards[0] - rewards[1],
            "logps/chosen": shown[0].detach(),
            "logps/rejected": shown[1].detach(),
        }
        | figures,
    )


def sigmoid_loss(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the preference, with the margin as its log-odds.

    With smoothing, conservative DPO (https://ericmitchell.ai/cdpo.pdf).

    Args:
        margin: (pairs,) the chosen answer's reward minus the rejected one's.
        label_smoothing: The assumed share of wrong labels.
    """
    right = -F.logsigmoid(margin)
    if not label_smoothing:
        return right
    return (1 - label_smoothing) * right - label_smoothing * F.logsigmoid(-margin)


def robust_loss(margin: Tensor, label_smoothing: float) -> Tensor:
    """`sigmoid_loss`, made unbiased for a known share of wrong labels (https://arxiv.org/abs/2403.00409, eq. 12).

    Args:
        margin: (pairs,) the chosen answer's reward minus the rejected one's.
        label_smoothing: The share of wrong labels, below 0.5.
    """
    right, wrong = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The log odds ratio of the better to the other answer (https://arxiv.org/abs/2403.07691, eq. 7).

    Args:
        chosen: (pairs,) mean log-probability per token of the better answer.
        rejected: (pairs,) that of the other answer.
    """
    return (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0 (https://cran.r-project.org/web/packages/Rmpfr/vignettes/log1mexp-note.pdf)."""
    x = x.clamp(max=-torch.finfo(x.dtype).eps)  # probability 1 would give minus infinity
    near, split = x > -0.6931471805599453, -0.6931471805599453
    return torch.where(
        near,
        torch.log(-torch.expm1(x.clamp(min=split))),
        torch.log1p(-torch.exp(x.clamp(max=split))),
    )
