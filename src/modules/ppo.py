"""Aligning a fine-tuned model with a reward: PPO with a value head and KL to a reference."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from peft import LoraConfig, PeftConfig, PeftModel
from torch.optim import AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import PreTrainedConfig

from src.contracts import Batch
from src.errors import ParleyError
from src.metrics.rouge import TokenizerName
from src.metrics.toxicity import Toxicity
from src.models.autocast import cast_once
from src.models.generation import GenerationOptions
from src.models.lora import ParameterCount
from src.models.reference import Reference
from src.models.responses import check_output_head
from src.models.rollout import RolloutOptions
from src.models.tying import hidden_size
from src.models.value_head import ValueHead
from src.modules.base import DialogueModule
from src.modules.ppo_collector import RolloutCollector
from src.modules.ppo_evaluation import Comparison, Evaluator, gather, summarise
from src.modules.ppo_learner import PPOLearner
from src.modules.ppo_steps import (
    PhaseClock,
    PPOParameterCount,
    agree,
    seeded,
    sum_over,
)
from src.rewards import Reward, score_responses
from src.rl.config import PPOConfig
from src.rl.losses import PPOLoss
from src.rl.masked import Reduce
from src.rl.rollout import Rollout
from src.rl.stats import rollout_stats, update_stats

log = logging.getLogger(__name__)


class PPOModule(DialogueModule):
    """Trains an encoder-decoder or decoder-only model by PPO (https://arxiv.org/abs/1707.06347) on any reward.

    One training batch is one iteration: sample a response to each prompt, score them, then learn from them in
    minibatches. The reference is the model as training finds it: the base below a fresh adapter, the fine-tuned model
    where an adapter directory or a whole model is trained on. Dropout is off throughout, so that policy and reference
    agree to the bit at the start.

    Args:
        model_name_or_path: A hub name, a model directory or an adapter directory, which is then trained on.
        reward: Scores responses; see docs/rewards.md.
        lora: A PEFT configuration to train a fresh adapter on a whole model.
        optimizer: Makes the optimiser from parameters.
        lr_scheduler: Makes the schedule from the optimiser; its steps are iterations. A constant rate when left out.
        ppo: PPO's hyper-parameters.
        rollout: How responses are sampled for training.
        generation: How validation, test and predict decode; as the model's own settings say when left out.
        toxicity: Measures the answers of validation and test; alt-profanity-check where that is the reward, else none.
        max_skipped_updates: Stop after so many updates in a row that were skipped for figures that are not finite.
        rouge_tokenizer: `standard` for English; `unicode` for other scripts.
        gguf_file: The GGUF file in the model's directory, where its weights are in one.
    """

    value_head: ValueHead
    reference: Reference
    collector: RolloutCollector

    def __init__(
        self,
        model_name_or_path: str,
        reward: Reward,
        lora: LoraConfig | PeftConfig | None = None,
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        ppo: PPOConfig | None = None,
        rollout: RolloutOptions | None = None,
        generation: GenerationOptions | None = None,
        toxicity: Toxicity | None = None,
        max_skipped_updates: int = 5,
        rouge_tokenizer: TokenizerName = "standard",
        gguf_file: str | None = None,
    ) -> None:
        super().__init__(
            model_name_or_path,
            lora=lora,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            generation=generation,
            rouge_tokenizer=rouge_tokenizer,
            gguf_file=gguf_file,
        )
        self.automatic_optimization = False
        self.reward = reward
        self.ppo = ppo or PPOConfig()
        self.rollout = rollout or RolloutOptions()
        self.learner = PPOLearner(self.ppo, self.rollout.temperature, max_skipped_updates)
        self.kl_controller = self.ppo.kl_controller()
        self.score_shaper = self.ppo.score_shaper()
        self.evaluator = Evaluator(reward, toxicity, rouge_tokenizer)
        self.seed: int | None = None  # settled when training starts, kept in checkpoints
        self.iteration = 0
        self.comparisons: list[Comparison] = []

    # Set-up

    def _check_architecture(self, config: PreTrainedConfig) -> None:
        self.is_encoder_decoder = bool(config.is_encoder_decoder)

    def configure_model(self) -> None:
        """Load the policy, keep its reference, put on the value head."""
        if self.model is not None:
            return
        super().configure_model()
        self.add_value_head_and_reference()

    def add_value_head_and_reference(self) -> None:
        """What PPO adds to the model."""
        model = self._model
        if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
            raise ParleyError("PPO trains adapters that change weights (LoRA and its like), not prompts; use LoRA.")
        self.reference = Reference(model, is_continued=self.lora is None)
        self.value_head = ValueHead(hidden_size(model))
        self.collector = RolloutCollector(self)
        model.eval()  # dropout is off in rollouts and in updates

    @property
    def parameter_count(self) -> ParameterCount:
        """Parameters of policy and value head, and of the reference."""
        return PPOParameterCount.of(self._model, self.value_head, self.reference)

    def setup(self, stage: str) -> None:
        """Load the reward and what measures toxicity early: what they lack shows before training."""
        self.reward.to(self.trainer.strategy.root_device)
        self.evaluator.prepare(self.trainer.strategy.root_device)
        try:
            score_responses(self.reward, [], [], [])
        except ParleyError:
            raise
        except Exception as error:  # a reward of a user's need not expect to be asked about nothing
            log.debug("the reward cannot be called without texts: %s", error)

    def on_fit_start(self) -> None:
        """Refuse what would go wrong later."""
        strategy = self.trainer.strategy  # DeepSpeed's is a kind of DDP's
        if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) or isinstance(strategy, DeepSpeedStrategy):
            raise ParleyError("PPOModule trains on one device or with DDP; set trainer.strategy: auto or ddp.")
        if self.trainer.precision == "16-mixed":
            raise ParleyError("PPOModule does not scale gradients; set trainer.precision: bf16-mixed or 32-true.")
        with strategy.precision_plugin.forward_context():
            check_output_head(self._model, int(self.tokenizer.pad_token_id))
        if self.seed is None:
            self.seed = torch.initial_seed()

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """One iteration of PPO."""
        clock = PhaseClock()
        generator = seeded(self.device, self.seed or 0, self.iteration, self.global_rank)
        real = torch.tensor([not is_filler for is_filler in batch["is_filler"]], device=self.device)
        with clock.phase("rollout"):
            encoder_hidden = self.collector.encode(batch)
            responses = self.collector.sample(batch, real, self.seed or 0, self.iteration, encoder_hidden)
        with clock.phase("reward"):
            scores = self.collector.score(batch, responses, real)
        finite = agree(bool(torch.isfinite(scores).all()), self.trainer)
        with clock.phase("forward"):
            rollout = self.collector.measure(batch, responses, scores, encoder_hidden)
        stats = self._rollout_stats(rollout.select(real.nonzero().flatten()), finite)
        losses: list[PPOLoss] = []
        with clock.phase("update"), cast_once(self._model, frozen_only=True, spare_head=True):
            if finite:
                rows = real.nonzero().flatten()
                losses = self.learner.learn(self, rollout, rows, generator, self.collector.shared(encoder_hidden))
            else:
                self.learner.skip("the reward gave a score that is not finite", self.iteration)
        if losses:
            stats |= update_stats(losses, self._reduce)
        self.iteration += 1
        self._log_iteration(stats, clock)
        self._step_schedules("step")

    @property
    def _reduce(self) -> Reduce | None:
        return sum_over(self.trainer)

    # Watching

    def _rollout_stats(self, rollout: Rollout, finite: bool) -> dict[str, float]:
        """Figures of the responses; steers the KL coefficient by them."""
        stats = rollout_stats(rollout, self.kl_controller.value, self._reduce)
        counts = torch.tensor([float(len(rollout)), float(rollout.response_mask.sum())], device=self.device)
        responses, tokens = (counts if self._reduce is None else self._reduce(counts)).tolist()
        self.kl_controller.update(stats["objective/kl"], int(responses))
        if not finite:  # nor are these
            stats = {name: value for name, value in stats.items() if "reward_" not in name and "_scores" not in name}
        return stats | {"tokens/responses": tokens}

    def _log_iteration(self, stats: dict[str, float], clock: PhaseClock) -> None:
        tokens = stats.pop("tokens/responses")
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        stats |= clock.stats() | {
            "time/tokens_per_second": tokens / clock.total,
            "ppo/learning_rate": optimizer.param_groups[0]["lr"],
            "ppo/skipped_updates": float(self.learner.skipped_updates),
        }
        shown: dict[str, Any] = {name: stats.pop(name) for name in ("env/reward_mean", "objective/kl") if name in stats}
        self.log_dict(shown, prog_bar=True, batch_size=1)
        self.log_dict(stats, batch_size=1)

    # Schedules

    @property
    def schedule_steps(self) -> int:
        """Iterations so far."""
        return self.iteration

    def _step_schedules(self, interval: str) -> None:
        """Manual optimisation leaves this to us; an iteration counts as a step."""
        for config in self.trainer.lr_scheduler_configs:
            if config.interval != interval:
                continue
            if isinstance(config.scheduler, ReduceLROnPlateau):
                metric = self.trainer.callback_metrics.get(config.monitor or "")
                if metric is not None:
                    config.scheduler.step(metric)
            else:
                config.scheduler.step()

    def on_train_epoch_end(self) -> None:
        """Step the schedules that count epochs."""
        self._step_schedules("epoch")

    # Evaluation

    def _compare(self, batch: Batch) -> dict[str, Any]:
        shared = self.collector.encode(batch) if self.collector.encoder_is_frozen else None
        rows = self.evaluator.compare(
            batch, self._model, self.reference, self.tokenizer, self.generation, shared, self.seed or 0
        )
        self.comparisons += rows
        answers = iter(rows)
        return {"predictions": ["" if filler else next(answers).response_after for filler in batch["is_filler"]]}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Answers of policy and reference to the same prompts, with the same seeds."""
        return self._compare(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """As in validation."""
        return self._compare(batch)

    def on_validation_epoch_start(self) -> None:
        """Start anew."""
        self.comparisons = []

    def on_test_epoch_start(self) -> None:
        """Start anew."""
        self.comparisons = []

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole split."""
        self.comparisons = gather(self.comparisons, self.trainer)
        self.log_dict(summarise(self.comparisons, "val"))

    def on_test_epoch_end(self) -> None:
        """Log the figures of the whole split."""
        self.comparisons = gather(self.comparisons, self.trainer)
        self.log_dict(summarise(self.comparisons, "test"))

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what PPO must know to go on as if nothing had happened."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ppo"] = {
            "reference": self.reference.fingerprint(),
            "kl_controller": self.kl_controller.state_dict(),
            "score_shaper": self.score_shaper.state_dict(),
            "seed": self.seed,
            "iteration": self.iteration,
            **self.learner.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what would not fit; take up PPO's state."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("ppo")
        if state is None:
            raise ParleyError(
                "this checkpoint is of fine-tuning, not of PPO; `parley export` it and give the directory as "
                "model.init_args.model_name_or_path."
            )
        if state["reference"] != self.reference.fingerprint():
            raise ParleyError(
                f"the checkpoint's run started from other weights than {self.model_name_or_path!r} has, which would "
                "change the reference; give the model that it started from."
            )
        self.kl_controller.load_state_dict(state["kl_controller"])
        self.score_shaper.load_state_dict(state["score_shaper"])
        self.learner.load_state_dict(state)
        self.seed, self.iteration = state["seed"], state["iteration"]
