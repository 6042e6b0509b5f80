"""The base of Modules that generate answers: decoding options and metrics of answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torchmetrics import Metric
from transformers import PreTrainedConfig

from src.contracts import Batch
from src.errors import ParleyError
from src.metrics.answers import AnswerMetric
from src.metrics.rouge import Rouge
from src.models.config import is_encoder_only
from src.models.generation import generate_text
from src.models.generation_options import GenerationOptions, ModelOptions
from src.models.static_decoder import refuse_engine
from src.modules.base import ModelModule


class GeneratingModule(ModelModule):
    """Base of `SupervisedModule` and `PolicyModule`.

    Args:
        model_name_or_path: A hub name or a directory that `from_pretrained` takes.
        generation: How validation, test and predict decode; as the model's own settings say when left out.
        metrics: Metrics of answers in validation and test, by name (docs/metrics.md); ROUGE when left out.
        **kwargs: The arguments of every Module (`ModelModule`).
    """

    def __init__(
        self,
        model_name_or_path: str,
        generation: GenerationOptions | None = None,
        metrics: dict[str, Metric] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, **kwargs)
        self.generation = generation or GenerationOptions()
        self._decodes_as_the_model_says = generation is None
        self.metrics: dict[str, Metric] = {"rouge": Rouge()} if metrics is None else metrics
        if self.generation.num_return_sequences != 1:
            raise ParleyError("generation.num_return_sequences must be 1 here: metrics take one answer a prompt.")

    def configure_model(self) -> None:
        """Load the model and, if `generation` was left out, its generation settings; a second call does nothing."""
        if self.model is not None:
            return
        super().configure_model()
        if self._decodes_as_the_model_says:
            self.generation = replace(ModelOptions.of(self.policy), num_return_sequences=1)
        if self.generation.engine == "static":
            refuse_engine("generation.engine", self.policy, in_shards=self.in_shards)

    def setup(self, stage: str) -> None:
        """Call every metric without answers, so that a missing package or classifier fails before training."""
        for metric in self.metrics.values():
            if isinstance(metric, AnswerMetric):
                metric.to(self.trainer.strategy.root_device).measure([])

    def _check_architecture(self, config: PreTrainedConfig) -> None:
        self._refuse_encoder_only(config)
        if bool(config.is_encoder_decoder) == self.is_encoder_decoder:
            return
        kind, other = "an encoder-decoder", "Seq2SeqModule"
        if self.is_encoder_decoder:
            kind, other = "a decoder-only", "CausalLMModule"
        raise ParleyError(
            f"{self.model_name_or_path!r} is {kind} model ({config.model_type}); use {other}, "
            f"or give {type(self).__name__} another model."
        )

    def _refuse_encoder_only(self, config: PreTrainedConfig) -> None:
        if is_encoder_only(config):
            raise ParleyError(
                f"{self.model_name_or_path!r} is an encoder-only model ({config.model_type}), which reads texts and "
                f"writes none; give {type(self).__name__} an encoder-decoder or a decoder-only one."
            )

    def generate(self, batch: Batch) -> list[str]:
        """Answers to a batch's prompts."""
        return generate_text(
            self.policy, self.tokenizer, batch["prompt_ids"], batch["prompt_attention_mask"], self.generation
        )
