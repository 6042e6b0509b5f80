"""PPO's second half of an iteration: learning from responses that are there, in minibatches."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from src.errors import ParleyError
from src.modules.ppo_steps import Minibatch, agree, minibatches, score_tokens, sum_over
from src.rl.config import PPOConfig
from src.rl.losses import PPOLoss, exceeds_target_kl, ppo_loss
from src.rl.rollout import Rollout

if TYPE_CHECKING:
    from src.modules.ppo import PPOModule

log = logging.getLogger(__name__)


class PPOLearner:
    """Takes `ppo_epochs` passes over a rollout, and leaves out updates that are not finite.

    Args:
        config: PPO's hyper-parameters.
        temperature: The one that responses are sampled at.
        max_skipped_updates: Stop after so many updates in a row that were left out.
    """

    def __init__(self, config: PPOConfig, temperature: float, max_skipped_updates: int) -> None:
        if max_skipped_updates < 1:
            raise ParleyError(f"max_skipped_updates is {max_skipped_updates}; it must be at least 1.")
        self.config = config
        self.temperature = temperature
        self.max_skipped_updates = max_skipped_updates
        self.skipped_updates = 0
        self.skipped_in_a_row = 0

    def learn(
        self,
        module: PPOModule,
        rollout: Rollout,
        rows: Tensor,
        generator: torch.Generator,
        encoder_hidden: Tensor | None,
    ) -> list[PPOLoss]:
        """Learn from a rollout.

        Args:
            module: Whose model, value head, optimiser and trainer.
            rollout: This process's responses.
            rows: (real responses,) those that are not fillers.
            generator: Draws the order of responses.
            encoder_hidden: The encoder's output for all queries, where it never changes.

        Returns:
            The loss of every minibatch.

        Raises:
            ParleyError: Too many updates in a row were left out.
        """
        optimizer, size = module.optimizers(), self.config.gradient_accumulation_steps
        assert isinstance(optimizer, LightningOptimizer)
        losses: list[PPOLoss] = []
        for _ in range(self.config.ppo_epochs):
            parts = minibatches(rollout, rows, self.config.minibatch_size, generator, encoder_hidden, module.trainer)
            for start in range(0, len(parts), size):
                group = parts[start : start + size]
                optimizer.zero_grad()
                losses += [self._backward(module, minibatch, len(group)) for minibatch in group]
                self._step(module, optimizer, losses[-len(group) :])
                kl = losses[-1].stats["policy/policykl"]
                if exceeds_target_kl(kl, self.config.target_kl, sum_over(module.trainer)):
                    return losses
        return losses

    def _backward(self, module: PPOModule, minibatch: Minibatch, accumulated: int) -> PPOLoss:
        rollout, config = minibatch.rollout, self.config
        new = score_tokens(
            module._model,
            rollout.query_ids,
            rollout.query_mask,
            rollout.response_ids,
            rollout.response_mask,
            minibatch.encoder_hidden,
            drawable=rollout.drawable,
            temperature=self.temperature,
            value_head=module.value_head,
            entropy_requires_grad=config.entropy_coef > 0,
        )
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
        module.manual_backward(loss.total * minibatch.weight / accumulated)
        torch.clear_autocast_cache()
        return PPOLoss(loss.total.detach(), loss.policy.detach(), loss.value.detach(), loss.skipped, loss.stats)

    def _step(self, module: PPOModule, optimizer: LightningOptimizer, losses: list[PPOLoss]) -> None:
        """Clip and step, unless something is not finite on any process."""
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(trained, self.config.max_grad_norm or torch.inf)
        finite = torch.stack([norm, *(loss.total.to(norm.device) for loss in losses)]).isfinite().all()
        if agree(bool(finite), module.trainer):
            optimizer.step()
            self.skipped_in_a_row = 0
        else:
            optimizer.zero_grad()
            self.skip("the loss or its gradient is not finite", module.iteration)

    def skip(self, why: str, iteration: int) -> None:
        """Count an update that was left out; every process comes here or none does.

        Raises:
            ParleyError: Too many in a row.
        """
        self.skipped_updates += 1
        self.skipped_in_a_row += 1
        log.warning("Iteration %d: update skipped: %s.", iteration, why)
        if self.skipped_in_a_row >= self.max_skipped_updates:
            raise ParleyError(
                f"{self.skipped_in_a_row} updates in a row were skipped, the last because {why}; go on from an earlier "
                "checkpoint with a lower learning rate, or look at what the reward returns."
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"skipped_updates": self.skipped_updates, "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as a checkpoint says."""
        self.skipped_updates, self.skipped_in_a_row = state["skipped_updates"], state["skipped_in_a_row"]
