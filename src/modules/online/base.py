"""The base of online methods, which learn from their own answers."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from src.contracts import Batch, RolloutRecord
from src.errors import ParleyError
from src.models.autocast import cast_once
from src.models.policy import TokenFigures, score_tokens
from src.modules.checkpoint import state_of_method
from src.modules.online.buffer import Minibatch, RolloutBuffer, Unit
from src.modules.online.clock import PhaseClock
from src.modules.online.policy import SamplingModule
from src.modules.online.records import records_of
from src.modules.online.skipping import SkippedUpdates
from src.parallel.gathering import gathered, local, total_norm
from src.ranges import COUNT
from src.rewards import Reward
from src.rl.config import OnlineConfig
from src.rl.masked import masked_mean
from src.rl.pooling import pooled_means
from src.rl.rollout import Rollout
from src.rl.stats import rollout_stats

log = logging.getLogger(__name__)


class MethodLoss(NamedTuple):
    """A method's loss and metrics on a minibatch.

    Attributes:
        total: Shape (), with gradient: the mean over the method's `unit`.
        stats: Figures to log, each of shape () and without gradient: means over the method's `unit`.
        token_stats: The same, means over response tokens.
    """

    total: Tensor
    stats: dict[str, Tensor]
    token_stats: Mapping[str, Tensor] = MappingProxyType({})


class OnlineModule(SamplingModule):
    """Base of the Modules that learn from their own answers: `PPOModule`, `RLOOModule`, `GRPOModule`.

    An iteration samples `num_generations` responses to each prompt of a batch, scores them, and then takes
    `passes * minibatches` training steps on them, each on a batch of Lightning's: the DataModule repeats the prompts
    this many times (`src.contracts.LearnsFromRollouts`). A method implements `advantages` and `loss`.

    Args:
        model_name_or_path: A hub name, a model directory or an adapter directory, which is then trained further.
        reward: Scores responses; see docs/rewards.md.
        config: The method's hyper-parameters.
        max_skipped_updates: Stop after so many updates in a row that were skipped because a value was not finite.
        **kwargs: The other arguments of `SamplingModule`.
    """

    unit: Unit = "responses"

    def __init__(
        self,
        model_name_or_path: str,
        reward: Reward,
        config: OnlineConfig,
        max_skipped_updates: int = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, reward, config, **kwargs)
        COUNT.refuse("max_skipped_updates", max_skipped_updates)
        self.score_shaper = config.score_shaper()
        self.skipped = SkippedUpdates(max_skipped_updates)
        self.buffer: RolloutBuffer | None = None  # set when training starts
        self._saved_buffer: dict[str, Any] | None = None  # from the checkpoint, until then
        self.minibatches = 0  # in a pass, on each process
        self._encoder_hidden: Tensor | None = None
        self._figures: dict[str, float] = {}  # metrics of the iteration's rollout
        self._clock: PhaseClock | None = None  # None in an iteration that was resumed
        self._learns = True  # whether the current optimiser step is taken
        self._tokens = torch.zeros(())  # in the last minibatch

    # For methods to implement

    @abstractmethod
    def advantages(self, rollout: Rollout) -> tuple[Rollout, dict[str, float]]:
        """Compute the advantages, once per iteration.

        Args:
            rollout: The responses of all processes, on the CPU, with `shaped_scores`.

        Returns:
            The rollout with `advantages` (and `returns`), and figures to log.
        """

    @abstractmethod
    def loss(self, minibatch: Minibatch, new: TokenFigures) -> MethodLoss:
        """The method's loss on a minibatch.

        Args:
            minibatch: The responses.
            new: The current policy's log-probabilities, entropies and values of them, with gradient.
        """

    # Set-up

    def minibatches_per_rollout(self, prompts: int) -> int:
        """Training steps that a batch of prompts is used for, on each process.

        Args:
            prompts: Prompts in a batch of one process.

        Raises:
            ParleyError: The minibatches cannot be divided into optimiser steps.
        """
        self.minibatches = -(-prompts * self.config.num_generations // self.config.minibatch_size)
        accumulate = self.trainer.accumulate_grad_batches
        if self.minibatches % accumulate:
            raise ParleyError(
                f"a pass over a rollout has {self.minibatches} minibatches ({prompts} prompts, "
                f"{self.config.num_generations} answers each, {self.config.minibatch_size} a minibatch), which "
                f"accumulate_grad_batches {accumulate} does not divide; change one of them."
            )
        return self._steps

    @property
    def _steps(self) -> int:
        return self.config.passes * self.minibatches

    def on_fit_start(self) -> None:
        """Refuse unsupported strategies and precisions."""
        super().on_fit_start()
        if self.trainer.precision == "16-mixed":
            name = type(self).__name__
            raise ParleyError(f"{name} skips updates, not scales them; set trainer.precision: bf16-mixed or 32-true.")

    def on_train_start(self) -> None:
        """Create the rollout buffer, or restore it now that the number of minibatches is known."""
        if not self.minibatches:
            raise ParleyError(f"{type(self).__name__} takes its prompts from a DataModule of Parley's; give one.")
        # Rank 0's seed: without `seed_everything` seeds differ between processes, and all must shuffle alike.
        self.buffer = RolloutBuffer(int(self.trainer.strategy.broadcast(torch.initial_seed())))
        if self._saved_buffer is not None:
            self.buffer.load_state_dict(self._saved_buffer, self._steps)
            self._saved_buffer = None

    @property
    def seed(self) -> int:
        """The run's seed, in training and when a checkpoint is tested; 0 for a model that was not trained."""
        return self.buffer.seed if self.buffer is not None else int((self._saved_buffer or {}).get("seed", 0))

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Train on one minibatch; the first step of an iteration samples the rollout."""
        assert self.buffer is not None
        # 1. Sample answers to the batch's prompts, once per iteration.
        if self.buffer.ended(self._steps) or batch_idx % self._steps == 0:
            self._begin_iteration(batch)
        elif self._encoder_hidden is None and self._encoder_is_kept:  # a run that was resumed within an iteration
            if self.buffer.is_of(batch["index"], self.config.num_generations):
                with gathered(self):
                    self._encoder_hidden = self.collector.encode(batch)
            else:  # resumed with other data, or other numbers of prompts or answers
                self._begin_iteration(batch)
        # 2. Take the next minibatch of them.
        is_over = self.buffer.is_over
        minibatch = self.buffer.next(
            minibatches=self.minibatches,
            unit=self.unit,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
            accumulate=self.trainer.accumulate_grad_batches,
        )
        self._learns = not is_over and not minibatch.is_idle
        if not self._learns:
            self._log_minibatch(None, minibatch)
            return self._nothing()
        minibatch = replace(minibatch, rollout=minibatch.rollout.to(self.device))
        # 3. Score it under the current policy, and compute the method's loss.
        with cast_once(self.policy, frozen_only=True, spare_head=True):
            new = self._score(minibatch)
        loss = self.loss(minibatch, new)
        torch.clear_autocast_cache()
        # 4. Log metrics, and check `target_kl`.
        self._log_minibatch(loss, minibatch)
        self._stop_if_far(minibatch.rollout, new)
        self._tokens = minibatch.rollout.response_mask.sum()
        # A loss that is not finite must not give a finite gradient.
        certain = torch.where(loss.total.detach().isfinite(), minibatch.weight, torch.nan)
        return loss.total * certain

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start timing the update; a rollout at the start of the step is not included."""
        if self._clock is not None:
            self._clock.start()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stop timing the update, and log the time after the iteration's last."""
        assert self.buffer is not None
        if self._clock is not None:
            is_over = self.buffer.ended(self._steps)
            seconds = self._clock.stop("update", is_over=is_over)
            if is_over:
                self.log_dict(_on_cpu({"time/update": seconds}), batch_size=1)
                self._clock = None

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Skip the update, by removing the gradients, if they are not finite or nothing is to be learned."""
        trained = [parameter for parameter in self.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if self._learns and bool(total_norm(gradients).isfinite()):
            self.skipped.in_a_row = 0
        else:
            if self._learns:
                assert self.buffer is not None
                self.skipped.skip(self.buffer.iteration, "the loss or its gradient is not finite")
            for parameter in trained:
                parameter.grad = None
        self.log_dict(_on_cpu({"train/skipped_updates": self.skipped.total}), batch_size=1)

    def _stop_if_far(self, rollout: Rollout, new: TokenFigures) -> None:
        """Skip the rest of the rollout, on every process, once the policy's KL from the sampling one is too large."""
        assert self.buffer is not None
        if self.config.target_kl is None or self.buffer.place % self.trainer.accumulate_grad_batches:
            return
        kl = masked_mean((rollout.logprobs - new.logprobs).detach(), rollout.response_mask)
        if self.trainer.world_size > 1:
            kl, tokens = self._of_all_processes(torch.stack([kl, rollout.response_mask.sum()])).T
            kl = pooled_means({"kl": kl}, tokens)["kl"]
        if float(kl) > 1.5 * self.config.target_kl:
            self.buffer.stop()

    @property
    def _encoder_is_kept(self) -> bool:
        """Whether minibatches reuse the rollout's encoder output: the encoder is frozen and all rows are local."""
        return self.collector.encoder_is_frozen and self.trainer.world_size == 1

    def _begin_iteration(self, batch: Batch) -> None:
        assert self.buffer is not None
        self._clock = clock = PhaseClock(self.device)
        with gathered(self):
            hidden = self.collector.encode(batch)
            self._encoder_hidden = hidden if self._encoder_is_kept else None
            own = self.collector.collect(batch, hidden, clock, seed=self.buffer.seed, iteration=self.buffer.iteration)
        rollout = self.collector.gather(own, self.trainer.world_size)
        finite = bool(torch.isfinite(rollout.scores).all())
        shaped = self.score_shaper(rollout.scores, rollout.has_eos)
        rollout = replace(rollout, scores=rollout.scores.nan_to_num(0, 0, 0), shaped_scores=shaped.nan_to_num(0, 0, 0))
        rollout, figures = self.advantages(rollout)
        self.buffer.fill(rollout)
        if not finite:
            self.buffer.stop()
            self.skipped.skip(self.buffer.iteration, "the reward gave a score that is not finite")
        self._figures = rollout_stats(rollout) | figures
        if not finite:  # scores that are not finite have become zeros
            unknown = ("reward", "scores")
            self._figures = {k: v for k, v in self._figures.items() if not any(word in k for word in unknown)}
        self.log_dict(_on_cpu(clock.seconds), batch_size=1)
        clock.start()

    def _score(self, minibatch: Minibatch) -> TokenFigures:
        rollout, rows, hidden = minibatch.rollout, minibatch.rows, None
        if self._encoder_hidden is not None:  # with an encoder, queries are padded on the right
            hidden = self._encoder_hidden[rows // self.config.num_generations, : rollout.query_ids.shape[1]]
        return score_tokens(
            self.policy,
            rollout.query_ids,
            rollout.query_mask,
            rollout.response_ids,
            rollout.response_mask,
            hidden,
            drawable=rollout.drawable,
            temperature=self.rollout.temperature,
            value_head=self.value_head,
            entropy_requires_grad=self.config.entropy_coef > 0,
        )

    def _nothing(self) -> Tensor:
        """A zero loss that depends on every trained parameter, so that collective calls match on all processes."""
        zeros = [local(parameter).sum() * 0 for parameter in self.parameters() if parameter.requires_grad]
        return torch.stack(zeros).sum()

    # Logging

    def _log_minibatch(self, loss: MethodLoss | None, minibatch: Minibatch) -> None:
        """Log the metrics of the iteration and of the minibatch, pooled over all processes."""
        shown: dict[str, float] = {
            name: self._figures[name] for name in ("env/reward_mean", "objective/kl") if name in self._figures
        }
        others = {name: value for name, value in self._figures.items() if name not in shown}
        self.log_dict(_on_cpu(shown), prog_bar=True, batch_size=1)
        self.log_dict(_on_cpu(others), batch_size=1)
        if loss is None:
            return
        stats = {**loss.stats, **loss.token_stats}
        if self.trainer.world_size > 1:
            tokens = minibatch.rollout.response_mask.sum()
            own = torch.stack([tokens.new_tensor(minibatch.weight, dtype=torch.float32), tokens, *stats.values()])
            weights, counts, *figures = self._of_all_processes(own).T
            named = dict(zip(stats, figures, strict=True))
            stats = self.pool({name: named[name] for name in loss.stats}, weights, counts)
            stats |= pooled_means({name: named[name] for name in loss.token_stats}, counts)
        self.log_dict({name: figure.float() for name, figure in stats.items()}, batch_size=1)

    def pool(self, stats: dict[str, Tensor], weights: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Pool a minibatch's `stats` over all processes; methods override it for metrics that are not means.

        Args:
            stats: The metrics of each process, of shape (processes,) each.
            weights: Shape (processes,): the weight of each process, in terms of the method's `unit`.
            tokens: Shape (processes,): the number of response tokens of each process.

        Returns:
            The pooled metrics, of shape () each.
        """
        return pooled_means(stats, weights)

    def _of_all_processes(self, own: Tensor) -> Tensor:
        """Gather values from all processes: from shape (values,) to (processes, values)."""
        return self.trainer.strategy.all_gather(own.detach().float())

    def rollout_records(self) -> list[RolloutRecord]:
        """The responses of all processes, if the last training step started an iteration; otherwise empty."""
        if self.buffer is None or self.buffer.rollout is None or self.buffer.place != 1:
            return []
        return records_of(self.buffer.rollout, self.buffer.iteration, self.tokenizer, self.collector.endings)

    def tokens(self, batch: Batch) -> Tensor:
        """Response tokens of the last minibatch."""
        return self._tokens

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """The method's state for a checkpoint, without the rollout."""
        return {
            "figures": self._figures,
            "score_shaper": self.score_shaper.state_dict(),
            **self.skipped.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned."""
        self._figures = state["figures"]
        self.score_shaper.load_state_dict(state["score_shaper"])
        self.skipped.load_state_dict(state)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the current rollout and the method's state."""
        super().on_save_checkpoint(checkpoint)
        assert self.buffer is not None
        checkpoint["online"] = {
            "method": type(self).__name__,
            "reference": self.reference.fingerprint(),
            "buffer": self.buffer.state_dict(self._steps),
            **self.state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another method or reference; restore the method's state and keep the rollout's."""
        super().on_load_checkpoint(checkpoint)
        state = state_of_method(
            checkpoint,
            "online",
            method=type(self).__name__,
            reference=self.reference.fingerprint(),
            name=self.model_name_or_path,
        )
        self.load_state(state)
        self._saved_buffer = state["buffer"]


def _on_cpu(figures: Mapping[str, float]) -> dict[str, Tensor]:
    """Figures to log, as Lightning makes them of numbers, but left on the CPU: each copy would stall a GPU."""
    return {name: torch.tensor(figure, dtype=torch.float32) for name, figure in figures.items()}
