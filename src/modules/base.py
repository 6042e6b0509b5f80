"""What every Module shares: model, loss, generation, metrics, optimiser, checkpoints."""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from src.contracts import Batch
from src.errors import ParleyError
from src.metrics.rouge import TokenizerName
from src.models.cpu import speed_up_on_cpu
from src.models.generation import GenerationOptions, ModelOptions, generate_text
from src.models.loading import fit_embeddings, identify, load_config, load_model, load_tokenizer
from src.models.lora import ParameterCount, add_lora, count_parameters
from src.modules.breakdown import Breakdown
from src.modules.checkpoint import describe, keep_adapter, refuse_other_base
from src.modules.metrics import EvaluationMetrics
from src.modules.optimizers import OptimizerPlan
from src.modules.token_mean import TokenMean

log = logging.getLogger(__name__)


class DialogueModule(LightningModule):
    """Base of the Modules that learn to answer prompts: `Seq2SeqModule` and `CausalLMModule`.

    Set-up has a fixed order, in `configure_model`: tokenizer, base model, adapter. Lightning calls it
    on every process, once the strategy says where and in which precision the model is to be.

    Args:
        model_name_or_path: A hub name or a directory that `from_pretrained` takes.
        lora: A PEFT configuration to train an adapter; the whole model is trained when left out.
        optimizer: Makes the optimiser from parameters.
        lr_scheduler: Makes the schedule from the optimiser; a constant rate when left out.
        generation: How validation, test and predict decode; as the model's own settings say when left out.
        dropout: Every dropout probability of the model; its own configuration's when left out.
        label_smoothing: Share of the target's probability that is spread over the vocabulary.
        gradient_checkpointing: Recompute activations in the backward pass, for memory.
        rouge_tokenizer: `standard` for English; `unicode` for other scripts, which the standard one drops.
        gguf_file: The GGUF file in the model's directory, where its weights are in one.
    """

    is_encoder_decoder: bool

    def __init__(
        self,
        model_name_or_path: str,
        lora: LoraConfig | PeftConfig | None = None,
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        generation: GenerationOptions | None = None,
        dropout: float | None = None,
        label_smoothing: float = 0.0,
        gradient_checkpointing: bool = False,
        rouge_tokenizer: TokenizerName = "standard",
        gguf_file: str | None = None,
    ) -> None:
        super().__init__()
        self.model_name_or_path = model_name_or_path
        self.lora = lora
        self._plan = OptimizerPlan(optimizer, lr_scheduler)
        self.generation = generation or GenerationOptions()
        self._decodes_as_the_model_says = generation is None
        self.dropout = dropout
        self.label_smoothing = label_smoothing
        self.gradient_checkpointing = gradient_checkpointing
        self.gguf_file = gguf_file
        self.model: PreTrainedModel | PeftModel | None = None
        self.tokenizer: PreTrainedTokenizerBase
        if self.generation.num_return_sequences != 1:
            raise ParleyError("generation.num_return_sequences must be 1 here: metrics take one answer a prompt.")
        self.val_metrics = EvaluationMetrics(rouge_tokenizer)
        self.test_metrics = EvaluationMetrics(rouge_tokenizer)
        self._token_mean = TokenMean()
        self._breakdown = Breakdown()

    # Set-up

    def configure_model(self) -> None:
        """Load the model; a second call does nothing."""
        if self.model is not None:
            return
        name = self.model_name_or_path
        self._check_architecture(load_config(name, self.gguf_file))
        self.tokenizer = load_tokenizer(name, gguf_file=self.gguf_file)
        model = load_model(
            name,
            gguf_file=self.gguf_file,
            dtype=torch.get_default_dtype(),
            dropout=self.dropout,
            is_trainable=True,
        )
        if not isinstance(model, PeftModel):
            fit_embeddings(model, self.tokenizer)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        if self.lora is not None:
            if isinstance(model, PeftModel):
                raise ParleyError(
                    f"{name!r} is an adapter already and is trained on; leave lora out, or give its base."
                )
            identify(model)  # while its files are what they were
            model = add_lora(model, self.lora)
        if isinstance(model, PeftModel) and self._trainer is not None:
            _refuse_averaging(self.trainer.callbacks)  # type: ignore[attr-defined]
        if self._trainer is not None and self.trainer.strategy.root_device.type == "cpu":
            speed_up_on_cpu(model)
        # An adapter's checkpoint holds the adapter alone; `on_load_checkpoint` sees to it that nothing is missing.
        self.strict_loading = not isinstance(model, PeftModel)
        if self._decodes_as_the_model_says:
            self.generation = replace(ModelOptions.of(model), num_return_sequences=1)
        self.model = model.train()

    def _check_architecture(self, config: PreTrainedConfig) -> None:
        if bool(config.is_encoder_decoder) == self.is_encoder_decoder:
            return
        kind, other = "an encoder-decoder", "Seq2SeqModule"
        if self.is_encoder_decoder:
            kind, other = "a decoder-only", "CausalLMModule"
        raise ParleyError(
            f"{self.model_name_or_path!r} is {kind} model ({config.model_type}); use {other}, "
            f"or give {type(self).__name__} another model."
        )

    @property
    def parameter_count(self) -> ParameterCount:
        """Parameters of the model, and how many are trained."""
        return count_parameters(self._model)

    @property
    def _model(self) -> PreTrainedModel | PeftModel:
        assert self.model is not None, "configure_model comes first"
        return self.model

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule; weight decay spares what transformers' Trainer spares."""
        return self._plan.configure(self)

    @property
    def schedule_steps(self) -> int:
        """Steps so far, as schedules count them."""
        return self.trainer.global_step

    # Loss

    @abstractmethod
    def token_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and labels of the tokens to learn from: (tokens, vocabulary) and (tokens,)."""

    def loss_sum(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over the tokens to learn from, and their number; smoothed in training only."""
        logits, labels = self.token_logits(batch)
        smoothing = self.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)
        return loss, torch.tensor(labels.numel(), device=labels.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean over the tokens of all processes and accumulated batches: a run's losses don't depend on the cut."""
        loss_sum, count = self.loss_sum(batch)
        total = count
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(count.clone(), reduce_op="sum")
        # The strategy averages gradients over processes; this undoes it.
        loss, shown = self._token_mean.add(loss_sum * self.trainer.world_size, total)
        self.log("train/loss", shown, prog_bar=True, sync_dist=self.trainer.world_size > 1, batch_size=1)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Make the gradients those of the step's mean, and see that there is one."""
        loss = self._token_mean.settle(self.parameters(), self.trainer.accumulate_grad_batches)
        if loss is not None:
            self._breakdown.note(loss, self.trainer)

    # Evaluation

    def _evaluate(self, batch: Batch, metrics: EvaluationMetrics) -> dict[str, list[str]]:
        loss_sum, count = self.loss_sum(batch)
        predictions = self.generate(batch)
        real = [row for row, is_filler in enumerate(batch["is_filler"]) if not is_filler]
        metrics.update(loss_sum, count, [predictions[row] for row in real], [batch["references"][row] for row in real])
        return {"predictions": predictions}

    def generate(self, batch: Batch) -> list[str]:
        """Answers to a batch's prompts."""
        return generate_text(
            self._model, self.tokenizer, batch["prompt_ids"], batch["prompt_attention_mask"], self.generation
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list[str]]:
        """Loss and generated answers; the answers go to the callbacks."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, list[str]]:
        """As in validation."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, list[str]]:
        """Generated answers."""
        return {"predictions": self.generate(batch)}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole split."""
        self.log_dict(self.val_metrics.compute("val"))

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole split."""
        self.log_dict(self.test_metrics.compute("test"))

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what was trained from what; leave a frozen base out."""
        checkpoint["parley"] = describe(self._model)
        epoch = self.trainer.fit_loop.epoch_progress.current
        epochs = epoch.started - int(not self.trainer.is_last_batch)  # type: ignore[attr-defined]
        checkpoint["optimizer"] = self._plan.describe(self.schedule_steps, epochs)
        if isinstance(self._model, PeftModel):
            checkpoint["state_dict"] = keep_adapter(checkpoint["state_dict"], self, self._model)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what would not fit; keep the optimiser's settings as configured."""
        refuse_other_base(checkpoint, self._model)
        self._plan.resume_from(checkpoint)


def _refuse_averaging(callbacks: list[Callback]) -> None:
    """Lightning's averages want the whole model in a checkpoint, and an adapter's checkpoint leaves the base out."""
    for callback in callbacks:
        if isinstance(callback, WeightAveraging):
            raise ParleyError(
                f"{type(callback).__name__} could not be resumed with an adapter, whose checkpoints leave the base "
                "out; drop the callback, or train the whole model (lora: null)."
            )
