"""PEFT adapters: adding one to a model, counting parameters, merging and unmerging."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peft import (
    PeftConfig,
    PeftModel,
    PeftType,
    TaskType,
    get_peft_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from torch import nn
from transformers import PreTrainedModel

from src.errors import ParleyError
from src.models.adapter_checks import acts_in_layers, check_adapter, check_config
from src.models.classifiers import head_name, is_classifier
from src.models.fingerprint import base_record
from src.models.low_precision import elements, is_finer_than_base, train_in_float32
from src.models.sources import first_line
from src.models.tying import T5_FAMILY, base_model, settle_head

NEVER_MERGED = (PeftType.LILY, PeftType.OSF)  # PEFT cannot merge or unmerge these


@dataclass(frozen=True)
class ParameterCount:
    """The numbers of all and of trained parameters; tied ones are counted once."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trainable / self.total if self.total else 0.0
        return f"{self.trainable:,} of {self.total:,} parameters trainable ({share:.2f} %)"


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's parameters, also on the meta device."""
    sizes = [(elements(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCount(sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes))


def add_lora(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Add an adapter to a model; the base is frozen in place.

    Args:
        model: The base.
        config: Any PEFT configuration. It is not changed; if `task_type` is left out, it follows the architecture. A
            classifier's head, and whatever else of it is newly initialised, is trained in full.

    Returns:
        The PEFT model around `model`.

    Raises:
        ParleyError: When a target module is not in the model, or PEFT or `adapter_checks` refuses the configuration.
    """
    config = copy.deepcopy(config)
    if is_classifier(model):
        _train_head(model, config)
    elif config.task_type is None:
        config.task_type = TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
    config.inference_mode = False
    check_config(model, config)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT corrects it itself
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # see `merged`
            adapted = get_peft_model(model, config)
    except (
        RuntimeError,  # shapes that an initialisation does not support; a bias or layer that the tuner does not support
        ValueError,  # settings that contradict each other
        TypeError,
        KeyError,  # an unknown name
    ) as error:
        raise ParleyError(f"PEFT refuses this adapter: {first_line(error)}") from error
    train_in_float32(adapted)
    check_adapter(adapted)
    return adapted


def _train_head(model: PreTrainedModel, config: PeftConfig) -> None:
    """Train a classifier's head beside the adapter: if newly initialised, a frozen one would stay random.

    Raises:
        ParleyError: The configuration is of another task, or cannot train a head.
    """
    if config.task_type not in (None, TaskType.SEQ_CLS):
        raise ParleyError(
            f"lora.task_type is {config.task_type}, and a reward model is a classifier (SEQ_CLS); leave it out."
        )
    if config.is_prompt_learning or not hasattr(config, "modules_to_save"):
        raise ParleyError(
            "a reward model trains its head beside an adapter that changes weights (LoRA and its like); use LoRA."
        )
    config.task_type = TaskType.SEQ_CLS
    whole = dict.fromkeys([*(config.modules_to_save or []), head_name(model), *base_record(model).fresh])
    config.modules_to_save = [name for name in whole if name not in SEQ_CLS_HEAD_NAMES]  # PEFT adds these itself


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """A copy of the model with the adapter merged into its weights; the given model is not changed.

    If the adapter is on the embeddings or the head of a model in which they are tied, they are untied in the copy:
    merging into the shared matrix would change both.

    Raises:
        ParleyError: The adapter cannot be merged, or the architecture does not support the merged weights.
    """
    if obstacle := _merge_obstacle(model):
        raise ParleyError(f"{obstacle}; export it without --merge.")
    model = copy.deepcopy(model)
    _give_own_weights(_adapted_modules(model))
    is_replicated = bool(getattr(model.active_peft_config, "layer_replication", None))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")  # they have been untied
        merged = model.merge_and_unload(safe_merge=True)
    if merged.config.model_type in T5_FAMILY:  # PEFT sets it to False, but T5's two stacks share embeddings by it
        merged.config.tie_word_embeddings = True
    if is_replicated:  # replicas share the layers that are not adapted
        embeddings = (merged.get_input_embeddings(), merged.get_output_embeddings())
        _give_own_weights(module for module in merged.modules() if module not in embeddings)
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return settle_head(merged, untied=False)


@contextmanager
def merged(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Within the block merge the adapter into the weights, and restore them bit for bit afterwards.

    PEFT's own unmerge subtracts what it added, which accumulates rounding errors, and its merge changes every module
    that shares a weight with an adapted one. Here the adapted modules get copies of their weights within the block. A
    model without an adapter, or with one that is disabled or cannot be merged, is left unchanged. So is one whose base
    is in less than the adapter's precision: folded in, the adapter would be rounded too, and answers would come from
    another model than the one that is trained.

    Args:
        model: Any model; changed in place within the block.
    """
    layers = _tuned_layers(model) if isinstance(model, PeftModel) and not _fold_obstacle(model) else []
    if not layers or any(layer.merged or layer.disable_adapters for layer in layers):
        yield
        return
    assert isinstance(model, PeftModel)
    originals = _give_own_weights(_adapted_modules(model))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
            model.merge_adapter()
        yield
    finally:
        model.unmerge_adapter()
        for module, name, parameter in originals:
            module._parameters[name] = parameter


def can_merge(model: PeftModel) -> bool:
    """Whether `merge_lora` supports the model."""
    return _merge_obstacle(model) is None


def _fold_obstacle(model: PeftModel) -> str | None:
    """Why the adapter cannot be expressed as a change of the weights; None if it can."""
    config = model.active_peft_config
    kind = config.peft_type.value
    if not acts_in_layers(config) or not hasattr(model.base_model, "merge_adapter") or config.peft_type in NEVER_MERGED:
        return f"an adapter of type {kind} cannot be merged"
    if any(map(is_finer_than_base, _tuned_layers(model))):
        return "an adapter cannot be merged into a base that is quantised or rounded"
    adds_bias = getattr(config, "lora_bias", False) or config.peft_type == PeftType.BEFT
    if adds_bias and any(getattr(layer.get_base_layer(), "bias", None) is None for layer in _tuned_layers(model)):
        return f"an adapter of type {kind} cannot be merged into layers without a bias"
    return None


def _merge_obstacle(model: PeftModel) -> str | None:
    if obstacle := _fold_obstacle(model):
        return obstacle
    base = base_model(model)
    wrappers = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    if base.config.is_encoder_decoder and any(
        isinstance(stack.get_input_embeddings(), wrappers) and not _is_tied_wrapper(stack.get_input_embeddings())
        for stack in (base.get_encoder(), base.get_decoder())
    ):
        return (
            "an adapter on an encoder-decoder's embeddings cannot be merged (encoder, decoder and head would need "
            "a matrix each)"
        )
    return None


def _is_tied_wrapper(module: nn.Module) -> bool:
    """Whether the trained rows are the same for embeddings and head, so that they stay tied."""
    return isinstance(module, TrainableTokensWrapper) and module.token_adapter.tied_adapter is not None


def _tuned_layers(model: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _adapted_modules(model: nn.Module) -> list[nn.Module]:
    modules = [module for layer in _tuned_layers(model) for module in layer.get_base_layer().modules()]
    return list(dict.fromkeys(modules))


def _give_own_weights(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Give modules their own copies of their weights.

    Returns:
        The modules, names and original parameters, to be restored.
    """
    originals = [
        (module, name, parameter)
        for module in modules
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]
    for module, name, parameter in originals:
        module._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
    return originals
