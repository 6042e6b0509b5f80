"""The base of policies with a reference model: set-up of both, and their comparison in validation and test."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any, Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from peft import LoraConfig, PeftConfig
from torch import nn
from torch.optim import AdamW
from torchmetrics import Metric
from transformers import BitsAndBytesConfig, PreTrainedConfig

from src.contracts import Batch, PreferenceBatch
from src.errors import ParleyError
from src.models.adapter_checks import base_is_whole
from src.models.generation_options import GenerationOptions
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

    The reference is the model as it is when training starts: the base below a fresh adapter, or the fine-tuned model if
    an adapter directory or a whole model is trained further. Dropout is off, so that policy and reference agree bit for
    bit at the start. Validation and test answer every prompt with both.

    Args:
        model_name_or_path: A hub name, a model directory or an adapter directory, which is then trained further.
        reward: Scores answers; see docs/rewards.md. None for no scores, if the method needs none.
        lora: A PEFT configuration to train a fresh adapter on a whole model.
        optimizer: Makes the optimiser from parameters.
        lr_scheduler: Makes the schedule from the optimiser; a constant rate when left out.
        generation: How validation, test and predict decode; as the model's own settings say when left out.
        metrics: Metrics of answers in validation and test, by name (docs/metrics.md); ROUGE when left out.
        speed_ups: As in `ModelModule`.
        attn_implementation: As in `ModelModule`.
        torch_compile: As in `ModelModule`; for the reference, and where answers are made, nothing is compiled.
        dtype: As in `ModelModule`; the reference's too.
        quantization: As in `ModelModule`; the reference's too.
        gguf_file: The GGUF file in the model's directory, where its weights are in one.
        trust_remote_code: Run the code that the model's directory brings.

    Attributes:
        comparisons: The comparisons of the split evaluated last, in its order.
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
        speed_ups: bool = True,
        attn_implementation: str | None = None,
        torch_compile: bool = False,
        dtype: Literal["bfloat16", "float16"] | None = None,
        quantization: BitsAndBytesConfig | None = None,
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
            speed_ups=speed_ups,
            attn_implementation=attn_implementation,
            torch_compile=torch_compile,
            dtype=dtype,
            quantization=quantization,
            gguf_file=gguf_file,
            trust_remote_code=trust_remote_code,
        )
        self.reward = reward
        self.evaluator = Evaluator(reward, self.metrics)
        self.comparisons: list[Comparison] = []
        self.value_head: ValueHead | None = None  # for methods that have one

    # Set-up

    def _check_architecture(self, config: PreTrainedConfig) -> None:
        self._refuse_encoder_only(config)
        self.is_encoder_decoder = bool(config.is_encoder_decoder)

    def configure_model(self) -> None:
        """Load the policy and keep its reference."""
        if self.model is not None:
            return
        super().configure_model()
        if not base_is_whole(self.policy):
            raise ParleyError(
                f"{type(self).__name__} trains adapters that change weights at every token (LoRA and its like), "
                "neither prompts nor aLoRA; use LoRA."
            )
        self.reference = self.make_reference()
        self.policy.eval()  # dropout is off

    def make_reference(self) -> Reference | None:
        """Make the reference from the policy before training; None if none is to be kept in memory."""
        return Reference(self.policy, is_continued=self.lora is None, until_followed=self.in_shards)

    def on_fit_start(self) -> None:
        """Refuse unsupported strategies and architectures."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, ShardedStrategy)):
            raise ParleyError(
                f"{type(self).__name__} trains on one device, with DDP or in shards; set trainer.strategy: auto or "
                "ddp, or -c configs/trainer/fsdp.yaml."
            )
        with gathered(self), strategy.precision_plugin.forward_context():
            check_output_head(self.policy, int(self.tokenizer.pad_token_id))

    def sharded_roots(self) -> list[nn.Module]:
        """The policy, and its value head if there is one."""
        return [*super().sharded_roots(), *([] if self.value_head is None else [self.value_head])]

    def on_sharded(self) -> None:
        """Shard the reference's weights like the policy's."""
        if self.reference is not None:
            self.reference.follow(self.policy)

    @property
    def parameter_count(self) -> ParameterCount:
        """Parameters of the policy, its value head and the reference."""
        return PolicyParameterCount.of(self.policy, self.value_head, self.reference)

    def setup(self, stage: str) -> None:
        """Call reward and metrics without answers, so that a missing package or model fails before training."""
        super().setup(stage)
        self.evaluator.to(self.trainer.strategy.root_device)
        if self.reward is None:
            return
        self.reward.to(self.trainer.strategy.root_device)
        try:
            score_responses(self.reward, [], [], [])
        except ParleyError:
            raise
        except Exception as error:  # a user's reward need not support an empty batch
            log.debug("the reward cannot be called without texts: %s", error)

    # Evaluation

    @property
    @abstractmethod
    def seed(self) -> int:
        """The run's seed, for sampled answers."""

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
        """Reset comparisons and metrics, at the start of a validation or test."""
        self.comparisons = []
        self.evaluator.reset()

    def summarise(self, stage: str) -> dict[str, Any]:
        """Figures of the whole split, all processes together; every process must call this.

        Args:
            stage: The prefix of each name.
        """
        self.comparisons = gather(self.comparisons, self.trainer)
        return dict(self.evaluator.summarise(self.comparisons, stage))

    def on_validation_epoch_start(self) -> None:
        """Reset comparisons and metrics."""
        self.start_split()

    def on_test_epoch_start(self) -> None:
        """Reset comparisons and metrics."""
        self.start_split()

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole split."""
        self.log_dict(self.summarise("val"))

    def on_test_epoch_end(self) -> None:
        """Log the figures of the whole split."""
        self.log_dict(self.summarise("test"))
