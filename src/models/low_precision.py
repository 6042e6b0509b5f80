"""Frozen bases that take less memory than float32: quantised to 4 bits by bitsandbytes, or rounded to 16.

What is trained above one (an adapter, modules beside it, a value head) stays in float32.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from src.errors import ParleyError
from src.models.sources import is_adapter
from src.models.tying import base_model
from src.parallel.gathering import bytes_of

STARTS = (True, False, "gaussian", "orthogonal")  # of adapters: those that leave the base alone
KINDS = ("nf4", "fp4")
HEADS = (*SEQ_CLS_HEAD_NAMES, "classification_head", ".*pooler")  # of classifiers, and what may be fresh below


def check_request(name: str | Path, adapter: PeftConfig | None, setting: str) -> None:
    """Refuse a base in less than float32 where nothing in float32 is trained above it.

    Args:
        name: The model.
        adapter: What is to be put on it.
        setting: What the user asked for: `dtype` or `quantization`.

    Raises:
        ParleyError: The whole model would be trained, or the trainer's precision rounds what is trained; or the adapter
            does not go with such a base.
    """
    if adapter is None and not is_adapter(name):
        raise ParleyError(f"{setting} is for a frozen base, and this run trains the whole model; give lora as well.")
    if torch.get_default_dtype() != torch.float32:
        raise ParleyError(
            f"{setting} is for a base below an adapter in float32, which the trainer's precision rounds; set "
            "trainer.precision: 32-true or bf16-mixed."
        )
    if adapter is not None:
        check_adapter_config(adapter, setting)


def check_adapter_config(adapter: PeftConfig, setting: str) -> None:
    """Refuse an adapter that changes or trains weights of the base, which are not there in float32.

    Args:
        adapter: Its settings.
        setting: What the user asked for: `dtype` or `quantization`.

    Raises:
        ParleyError: It does.
    """
    if (bias := getattr(adapter, "bias", "none")) != "none":
        raise ParleyError(
            f"lora.bias {bias!r} trains biases of the base, which {setting} keeps in less than float32; set it to none."
        )
    start = getattr(adapter, "init_lora_weights", True)
    if start not in STARTS:
        raise ParleyError(
            f"lora.init_lora_weights {start!r} begins by changing the base, which {setting} rounds: it could not be "
            f"exported; give one of {', '.join(map(str, STARTS))}."
        )


def check_quantization(config: BitsAndBytesConfig, gguf_file: str | None) -> None:
    """Refuse what bitsandbytes can do and training here cannot.

    Args:
        config: How to quantise.
        gguf_file: The file that the weights are in, where it is a GGUF file.

    Raises:
        ParleyError: It says anything but 4 bits, or bitsandbytes is not installed.
    """
    if gguf_file:
        raise ParleyError(f"{gguf_file} is quantised already, as GGUF files are; leave quantization out, or gguf_file.")
    if not config.load_in_4bit:
        raise ParleyError(
            "quantization must have load_in_4bit: true; 8 bits (LLM.int8) compute otherwise in training than in "
            "decoding, and are not offered."
        )
    if config.bnb_4bit_quant_type not in KINDS:
        raise ParleyError(
            f"quantization.bnb_4bit_quant_type is {config.bnb_4bit_quant_type!r}; give {' or '.join(KINDS)}."
        )
    if config.bnb_4bit_quant_storage != torch.uint8:
        raise ParleyError(
            "quantization.bnb_4bit_quant_storage is for shards, which 4 bits are not cut into; leave it out."
        )
    if config.llm_int8_enable_fp32_cpu_offload:
        raise ParleyError("quantization.llm_int8_enable_fp32_cpu_offload moves nothing here; leave it out.")
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ParleyError(f"quantization needs {package}: pip install -e '.[quantization]'.")


def settings_for(config: BitsAndBytesConfig, outputs: int | None) -> BitsAndBytesConfig:
    """What to hand to `from_pretrained`, which notes things in it; a classifier's head, which is trained, is spared.

    Args:
        config: How to quantise.
        outputs: Of a sequence classifier; None of a language model.
    """
    config = copy.deepcopy(config)
    if outputs is not None:
        config.llm_int8_skip_modules = [*(config.llm_int8_skip_modules or []), *HEADS]
    return config


def settle_quantized(model: PreTrainedModel, name: str) -> None:
    """Have a model that was just quantised compute the same with gradients and without.

    Args:
        model: Changed in place.
        name: What the user called it.

    Raises:
        ParleyError: Its output head was quantised too, or nothing was.
    """
    layers = [module for module in model.modules() if is_quantized(getattr(module, "weight", None))]
    if not layers:
        raise ParleyError(f"quantization found no linear layer in {name}; leave it out.")
    if hasattr(model.get_output_embeddings(), "quant_state"):  # tied, its weights are not quantised
        raise ParleyError(
            "quantization.llm_int8_skip_modules leaves out the output head, whose logits 4 bits would spoil; add it "
            "(lm_head), or leave the setting out."
        )
    for layer in layers:
        # On processors with AVX512-BF16 bitsandbytes would otherwise pack the weights anew when it first decodes, and
        # compute in bfloat16, without gradients, from then on.
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_quantized(weight: Any) -> bool:
    """Whether a parameter is one of bitsandbytes' in 4 bits."""
    return getattr(weight, "quant_state", None) is not None


def elements(parameter: Tensor) -> int:
    """The weights in a parameter, of which a quantised one packs two into a byte."""
    return int(parameter.quant_state.shape.numel()) if is_quantized(parameter) else parameter.numel()  # type: ignore[attr-defined]


def dequantized(parameter: Tensor) -> Tensor:
    """A quantised parameter's weights, in the shape that they had."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(parameter.data, parameter.quant_state)  # type: ignore[attr-defined]


def bytes_held(parameters: Iterable[Tensor]) -> int:
    """What parameters take in this process, in shards or not, with the scales of quantised ones.

    Args:
        parameters: Each once.
    """
    tensors: dict[int, Tensor] = {}
    for parameter in parameters:
        for tensor in (parameter, *_scales(getattr(parameter, "quant_state", None))):
            tensors[id(tensor)] = tensor
    return bytes_of(tensors.values())


def _scales(state: Any) -> list[Tensor]:
    """The tensors that bitsandbytes keeps beside a weight: scales, their scales, and what four bits stand for."""
    if state is None:
        return []
    own = [value for value in vars(state).values() if isinstance(value, Tensor)]
    return own + _scales(state.state2)


def is_finer_than_base(layer: Any) -> bool:
    """Whether an adapter's weights are in another precision than those that it would be folded into.

    Args:
        layer: PEFT's, around a layer of the base.
    """
    below = layer.get_base_layer()
    base = {id(parameter) for parameter in below.parameters()}
    own = {parameter.dtype for parameter in layer.parameters() if id(parameter) not in base}
    return any(dtype != parameter.dtype for parameter in below.parameters() for dtype in own)


def train_in_float32(model: PeftModel) -> bool:
    """Bring what is trained beside an adapter (`modules_to_save`) into float32, above a base that is in less.

    PEFT does so with adapters alone. The modules are given their inputs in float32, and what they make of them goes on
    in the base's precision, but for an output head's logits.

    Args:
        model: Changed in place.

    Returns:
        Whether anything was changed.

    Raises:
        ParleyError: Something else is trained in less than float32.
    """
    if torch.get_default_dtype() != torch.float32:  # the trainer's precision is that of all weights
        return False
    head, changed = base_model(model).get_output_embeddings(), False
    for wrapper in model.modules():
        if not isinstance(wrapper, ModulesToSaveWrapper):
            continue
        for trained in wrapper.modules_to_save.values():
            dtypes = {parameter.dtype for parameter in trained.parameters()}
            if dtypes <= {torch.float32}:
                continue
            trained.float()
            trained.register_forward_pre_hook(_in_own_dtype)
            if wrapper is not head:
                trained.register_forward_hook(_Cast((dtypes - {torch.float32}).pop()))
            changed = True
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ParleyError(
                f"{name} would be trained in {str(parameter.dtype).removeprefix('torch.')}, as the base is; leave "
                "dtype out, or train an adapter (LoRA and its like)."
            )
    return changed


def _in_own_dtype(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value for value in inputs
    )


class _Cast:
    """A hook that gives a module's output a dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        return output.to(self.dtype) if isinstance(output, Tensor) else output
