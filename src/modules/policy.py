"""A policy beside the reference that it is held to: how both are set up, and compared in validation and test."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from peft import LoraConfig, PeftConfig, PeftModel
from torch import nn
from torch.optim import AdamW
from torchmetrics import Metric
from transformers import PreTrainedConfig

from src.contracts import Batch, PreferenceBatch
from src.errors import ParleyError
from src.internals import is_attached
from src.models.generation import GenerationOptions
from src.models.lora import ParameterCount
from src.models.policy import encode_prompts
from src.models.reference import Reference
from src.models.responses import check_output_head, encoder_is_frozen
from src.models.value_head import ValueHead
from src.modules.counts import PolicyParameterCount
from src.modules.evaluation import Comparison, Evaluator, gather
from src.modules.generating import GeneratingModule
from src.parallel.gathering import gathered
from src.parallel.strategy import ShardedStrategy
from src.rewards import Reward, score_responses

log = logging.getLogger(__name__)


class PolicyModule(GeneratingModule):
    """A policy and its reference, with or without a reward.

    The reference is the model as training finds it: the base below a fresh adapter, the fine-tuned model where an
    adapter directory or a whole model is trained on. Dropout is off, so that policy and reference agree to the bit at
    the start. Validation and test answer every prompt with both.

    Args:
        model_name_or_path: A hub name, a model directory or an adapter directory, which is then trained on.
        reward: Scores answers; see docs/rewards.md. None where a method needs none and none is wanted.
        lora: A PEFT configuration to train a fresh adapter on a whole model.
        optimizer: Makes the optimiser from parameters.
        lr_scheduler: Makes the schedule from the optimiser; a constant rate when left out.
        generation: How validation, test and predict decode; as the model's own settings say when left out.
        metrics: Of the answers in validation and test, by name (docs/metrics.md); ROUGE when left out.
        cpu_speed_ups: As in `ModelModule`.
        attn_implementation: As in `ModelModule`.
        gguf_file: The GGUF file in the model's directory, where its weights are in one.
        trust_remote_code: Run the code that the model's directory brings.

    Attributes:
        comparisons: Of the split that was last gone through, in its order.
    """

    reference: Reference | None

    def __init__(
        self,
        model_name_or_path: str,
        reward: Reward | None = None,
        lora: LoraConfig | PeftConfig | None = None,
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        generation: GenerationOptions | None = None,
        metrics: dict[str, Metric] | None = None,
        cpu_speed_ups: bool = True,
        attn_implementation: str | None = None,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(
            model_name_or_path,
            lora=lora,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            generation=generation,
            metrics=metrics,
            cpu_speed_ups=cpu_speed_ups,
            attn_implementation=attn_implementation,
            gguf_file=gguf_file,
            trust_remote_code=trust_remote_code,
        )
        self.reward = reward
        self.evaluator = Evaluator(reward, self.metrics)
        self.comparisons: list[Comparison] = []
        self.value_head: ValueHead | None = None  # where a method puts one on

    # Set-up

    def _check_architecture(self, config: PreTrainedConfig) -> None:
        self._refuse_encoder_only(config)
        self.is_encoder_decoder = bool(config.is_encoder_decoder)

    def configure_model(self) -> None:
        """Load the policy and keep its reference."""
        if self.model is not None:
            return
        super().configure_model()
        model = self.policy
        if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
            raise ParleyError(
                f"{type(self).__name__} trains adapters that change weights (LoRA and its like), not prompts; use LoRA."
            )
        self.reference = self.make_reference()
        model.eval()  # dropout is off

    def make_reference(self) -> Reference | None:
        """What the policy is held to, made once the policy is as training finds it; None where nothing is kept."""
        in_shards = is_attached(self) and isinstance(self.trainer.strategy, ShardedStrategy)
        return Reference(self.policy, is_continued=self.lora is None, until_followed=in_shards)

    def on_fit_start(self) -> None:
        """Refuse what would go wrong later."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, ShardedStrategy)):
            raise ParleyError(
                f"{type(self).__name__} trains on one device, with DDP or in shards; set trainer.strategy: auto or "
                "ddp, or -c configs/trainer/fsdp.yaml."
            )
        with gathered(self), strategy.precision_plugin.forward_context():
            check_output_head(self.policy, int(self.tokenizer.pad_token_id))

    def sharded_roots(self) -> list[nn.Module]:
        """The policy, and what a method trains beside it."""
        return [*super().sharded_roots(), *([] if self.value_head is None else [self.value_head])]

    def on_sharded(self) -> None:
        """Keep the reference's weights as the policy's."""
        if self.reference is not None:
            self.reference.follow(self.policy)

    @property
    def parameter_count(self) -> ParameterCount:
        """Parameters of the policy and what is trained beside it, and of the reference."""
        return PolicyParameterCount.of(self.policy, self.value_head, self.reference)

    def setup(self, stage: str) -> None:
        """Load the reward and the metrics early: what they lack shows before training."""
        super().setup(stage)
        self.evaluator.to(self.trainer.strategy.root_device)
        if self.reward is None:
            return
        self.reward.to(self.trainer.strategy.root_device)
        try:
            score_responses(self.reward, [], [], [])
        except ParleyError:
            raise
        except Exception as error:  # a reward of a user's need not expect to be asked about nothing
            log.debug("the reward cannot be called without texts: %s", error)

    # Evaluation

    @property
    @abstractmethod
    def seed(self) -> int:
        """The run's: of sampled answers."""

    def compare(self, batch: Batch | PreferenceBatch) -> dict[str, Any]:
        """Answer a batch's prompts with policy and reference, and keep the comparisons; fillers are left out."""
        shared = None
        if encoder_is_frozen(self.policy):
            shared = encode_prompts(self.policy, batch["prompt_ids"], batch["prompt_attention_mask"])
        rows = self.evaluator.compare(
            batch, self.policy, self.reference, self.tokenizer, self.generation, shared, self.seed
        )
        self.comparisons += rows
        answers = iter(rows)
        return {"predictions": ["" if filler else next(answers).response_after for filler in batch["is_filler"]]}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Answers of policy and reference to the same prompts, with the same seeds."""
        return self.compare(batch)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """As in validation."""
        return self.compare(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list[str]]:
        """The policy's answers."""
        return {"predictions": self.generate(batch)}

    def start_split(self) -> None:
        """Begin a validation or a test."""
        self.comparisons = []
        self.evaluator.reset()

    def summarise(self, stage: str) -> dict[str, Any]:
        """Figures of the whole split, all processes together; every process must call this.

        Args:
            stage: Comes before each name.
        """
        self.comparisons = gather(self.comparisons, self.trainer)
        return dict(self.evaluator.summarise(self.comparisons, stage))

    def on_validation_epoch_start(self) -> None:
        """Start anew."""
        self.start_split()

    def on_test_epoch_start(self) -> None:
        """Start anew."""
        self.start_split()

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole split."""
        self.log_dict(self.summarise("val"))

    def on_test_epoch_end(self) -> None:
        """Log the figures of the whole split."""
        self.log_dict(self.summarise("test"))
