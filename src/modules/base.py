"""What every Module shares: model, adapter, optimiser, checkpoints."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from src.errors import ParleyError
from src.internals import epochs_so_far, is_attached
from src.models.compiling import compile_blocks
from src.models.config import load_config
from src.models.float32_files import half_precision_directory, write_in_float32
from src.models.loading import fit_embeddings, identify, load_model, load_tokenizer
from src.models.lora import ParameterCount, add_lora, count_parameters
from src.models.low_precision import check_adapter_config, check_request
from src.models.speed_ups import speed_up
from src.models.tying import base_model
from src.modules.checkpoint import describe, keep_adapter, refuse_other_base
from src.modules.optimizers import OptimizerPlan
from src.parallel.strategy import ShardedStrategy

log = logging.getLogger(__name__)


class ModelModule(LightningModule, ABC):
    """Base of every Module: of those that generate answers (`GeneratingModule`) and of the reward model.

    Set-up has a fixed order, in `configure_model`: tokenizer, base model, adapter. Lightning calls it on
    every process, once the strategy says where and in which precision the model is to be.

    Args:
        model_name_or_path: A hub name or a directory that `from_pretrained` takes.
        lora: A PEFT configuration to train an adapter; the whole model is trained when left out.
        optimizer: Makes the optimiser from parameters.
        lr_scheduler: Makes the schedule from the optimiser; a constant rate when left out.
        dropout: Every dropout probability of the model; its own configuration's when left out.
        gradient_checkpointing: Recompute activations in the backward pass, for memory.
        speed_ups: Compute the same functions by what is fast on the device: on a CPU dropout, attention and GELU
            (src/models/cpu.py; dropout's random numbers are others), on a GPU GELU and norms (src/models/fused.py).
        attn_implementation: transformers' name of the attention, such as `eager` or `flash_attention_2`; the fastest
            that there is when left out.
        torch_compile: Compile the model's blocks when training, in place of `speed_ups` (docs/scaling.md).
        dtype: Of a frozen base's weights, below an adapter in float32; float32 when left out.
        quantization: How bitsandbytes quantises a frozen base to 4 bits (docs/scaling.md).
        gguf_file: The GGUF file in the model's directory, where its weights are in one.
        trust_remote_code: Run the code that the model's directory brings.

    Attributes:
        outputs: The number of outputs, if the Module trains a sequence classifier; None for a language model.
    """

    is_encoder_decoder: bool
    outputs: ClassVar[int | None] = None

    def __init__(
        self,
        model_name_or_path: str,
        lora: LoraConfig | PeftConfig | None = None,
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        dropout: float | None = None,
        gradient_checkpointing: bool = False,
        speed_ups: bool = True,
        attn_implementation: str | None = None,
        torch_compile: bool = False,
        dtype: Literal["bfloat16", "float16"] | None = None,
        quantization: BitsAndBytesConfig | None = None,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.model_name_or_path = model_name_or_path
        self.lora = lora
        self._plan = OptimizerPlan(optimizer, lr_scheduler)
        self.dropout = dropout
        self.gradient_checkpointing = gradient_checkpointing
        self.speed_ups = speed_ups
        self.attn_implementation = attn_implementation
        self.torch_compile = torch_compile
        self.dtype_of_base = dtype
        self.quantization = quantization
        self.gguf_file = gguf_file
        self.trust_remote_code = trust_remote_code
        self.model: PreTrainedModel | PeftModel | None = None
        self.tokenizer: PreTrainedTokenizerBase

    # Set-up

    def configure_model(self) -> None:
        """Load the model; a second call does nothing."""
        if self.model is not None:
            return
        name = self.model_name_or_path
        config = load_config(name, self.gguf_file, outputs=self.outputs, trust_remote_code=self.trust_remote_code)
        self._check_architecture(config)
        if setting := self._low_precision:
            check_request(name, self.lora, setting)
        self.tokenizer = self.load_tokenizer(config)
        with self._float32_files() as files:
            model = load_model(
                name,
                gguf_file=self.gguf_file,
                dtype=getattr(torch, self.dtype_of_base) if self.dtype_of_base else torch.get_default_dtype(),
                quantization=self.quantization,
                attn_implementation=self.attn_implementation,
                dropout=self.dropout,
                is_trainable=True,
                outputs=self.outputs,
                trust_remote_code=self.trust_remote_code,
                float32_files=files,
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
            identify(model)  # before its files can change
            model = add_lora(model, self.lora)
        elif isinstance(model, PeftModel) and setting:
            check_adapter_config(model.active_peft_config, setting)
        if isinstance(model, PeftModel) and is_attached(self):
            _refuse_averaging(self.trainer.callbacks)  # type: ignore[attr-defined]
        device = self.trainer.strategy.root_device if is_attached(self) else None
        if device is not None and self.torch_compile and self.trainer.training:
            compile_blocks(model, device)
        elif device is not None and self.speed_ups:
            speed_up(model, device, with_attention=self.attn_implementation is None)
        # An adapter's checkpoint holds the adapter alone; `on_load_checkpoint` sees to it that nothing is missing.
        self.strict_loading = not isinstance(model, PeftModel)
        self.model = model.train()

    @property
    def in_shards(self) -> bool:
        """Whether the strategy shares the weights out over processes."""
        return is_attached(self) and isinstance(self.trainer.strategy, ShardedStrategy)

    @property
    def _low_precision(self) -> str | None:
        """Which setting has the base in less than float32."""
        return "quantization" if self.quantization is not None else "dtype" if self.dtype_of_base else None

    @contextmanager
    def _float32_files(self) -> Iterator[Path | None]:
        """For a run in shards, float32 files of a model in half precision: each machine has them in memory once."""
        strategy = self.trainer.strategy if is_attached(self) else None
        in_float32 = torch.get_default_dtype() == torch.float32 and self._low_precision is None
        if not isinstance(strategy, ShardedStrategy) or not in_float32:
            yield None
            return
        given = self.gguf_file is not None or self.trust_remote_code
        source = None if given else half_precision_directory(self.model_name_or_path)
        if source is None:
            yield None
            return
        with strategy.made_once_a_machine(lambda folder: write_in_float32(source, folder)) as folder:
            yield folder

    def load_tokenizer(self, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
        """The tokenizer of the model.

        Args:
            config: The model's.
        """
        return load_tokenizer(
            self.model_name_or_path, gguf_file=self.gguf_file, trust_remote_code=self.trust_remote_code
        )

    @abstractmethod
    def _check_architecture(self, config: PreTrainedConfig) -> None:
        """Refuse a model of an unsupported kind, and set `is_encoder_decoder`."""

    @property
    def parameter_count(self) -> ParameterCount:
        """Parameters of the model, and how many are trained."""
        return count_parameters(self.policy)

    @property
    def policy(self) -> PreTrainedModel | PeftModel:
        """The model that is trained, with its adapter."""
        assert self.model is not None, "configure_model comes first"
        return self.model

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule; weight decay applies to the same parameters as in transformers' Trainer."""
        return self._plan.configure(self, self.learning_rates)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients; with a fused optimiser too, which Lightning refuses under bf16-mixed.

        It does so because a fused optimiser divides by the scale of gradients itself; in bf16 they have none.
        """
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val or 0.0, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @property
    def learning_rates(self) -> dict[str, float]:
        """Separate learning rates of parts of the Module, by the prefix of their parameters' names."""
        return {}

    # Shards

    def sharded_roots(self) -> list[nn.Module]:
        """The base model, which is called with an adapter and without."""
        return [base_model(self.policy)]

    def on_sharded(self) -> None:
        """Called once the model is sharded; nothing to do here."""

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add descriptions of the model and the optimiser; leave out a frozen base's weights."""
        checkpoint["parley"] = describe(self.policy)
        checkpoint["optimizer"] = self._plan.describe(self.trainer.global_step, epochs_so_far(self.trainer))
        checkpoint["state_dict"] = self.kept_state(checkpoint["state_dict"])

    def kept_state(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict without the weights of a frozen base."""
        return keep_adapter(state_dict, self, self.policy) if isinstance(self.policy, PeftModel) else state_dict

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model; keep the optimiser's settings as configured."""
        refuse_other_base(checkpoint, self.policy)
        self._plan.resume_from(checkpoint)


def _refuse_averaging(callbacks: list[Callback]) -> None:
    """Refuse Lightning's weight averaging with an adapter: it needs the whole model in checkpoints."""
    for callback in callbacks:
        if isinstance(callback, WeightAveraging):
            raise ParleyError(
                f"{type(callback).__name__} could not be resumed with an adapter, whose checkpoints leave the base "
                "out; drop the callback, or train the whole model (lora: null)."
            )
