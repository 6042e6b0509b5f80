"""Adapters by PEFT: putting one on, counting, folding it in and taking it out again."""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import (
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from src.errors import ParleyError
from src.models.sources import first_line
from src.models.tying import T5_FAMILY, base_model, embedding_matrix, head_is_tied, settle_head, untie_head

ALL_LINEAR = "all-linear"  # PEFT's own word


@dataclass(frozen=True)
class ParameterCount:
    """How many of a model's parameters train; tied ones count once."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trainable / self.total if self.total else 0.0
        return f"{self.trainable:,} of {self.total:,} parameters trainable ({share:.2f} %)"


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's parameters, also on the meta device."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCount(sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes))


def add_lora(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Put an adapter on a model; the base is frozen, in place.

    Args:
        model: The base.
        config: Any PEFT configuration. It is not changed; a `task_type` left out follows the architecture.

    Returns:
        The PEFT model around `model`.

    Raises:
        ParleyError: When a target module is not in the model, or PEFT refuses the configuration.
    """
    config = copy.deepcopy(config)
    if config.task_type is None:
        config.task_type = TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
    config.inference_mode = False
    _check_targets(model, config)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT puts it right by itself
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            return get_peft_model(model, config)
    except (
        ValueError,  # settings at odds with each other
        TypeError,
        KeyError,  # a name that PEFT does not know
        NotImplementedError,  # raised by PEFT, not by us: a bias or a kind of layer that the chosen tuner has not got
    ) as error:
        raise ParleyError(f"PEFT refuses this adapter: {first_line(error)}") from error


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """A copy of the model with the adapter folded into its weights; the given model stays as it is.

    An adapter on the head of a model whose head is its embeddings unties the two in the copy: folding it into
    the one matrix would change the embeddings as well.

    Raises:
        ParleyError: When this kind of adapter has no weights to fold in (prompt tuning).
    """
    if not can_merge(model):
        kind = model.active_peft_config.peft_type.value
        raise ParleyError(f"an adapter of type {kind} cannot be merged; export it without --merge.")
    model = copy.deepcopy(model)
    base = base_model(model)
    if isinstance(base.get_output_embeddings(), BaseTunerLayer) and _head_weight_is_shared(base):
        _untie_adapted_head(base)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged = model.merge_and_unload(safe_merge=True)
    if merged.config.model_type in T5_FAMILY:  # PEFT sets it to False; T5 reads from it that its stacks share theirs
        merged.config.tie_word_embeddings = True
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return settle_head(merged, untied=False)


@contextmanager
def merged(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Fold the adapter into the weights while generating, and put the very bits back afterwards.

    PEFT's own way back subtracts what it added, which drifts by a rounding each time. Here the weights it touches
    are kept aside (as much memory again as the targeted modules hold). A model without an adapter, or with one
    that cannot be folded in, is left alone.

    Args:
        model: Any model; switched in place for the length of the block.
    """
    layers = _tuned_layers(model) if isinstance(model, PeftModel) and can_merge(model) else []
    if not layers or any(layer.merged for layer in layers):
        yield
        return
    assert isinstance(model, PeftModel)
    originals = [(p, p.detach().clone()) for layer in layers for p in layer.get_base_layer().parameters()]
    model.merge_adapter()
    try:
        yield
    finally:
        model.unmerge_adapter()
        with torch.no_grad():
            for parameter, original in originals:
                parameter.copy_(original)


def can_merge(model: PeftModel) -> bool:
    """Whether the adapter is made of changes to weights, which can be folded in."""
    return not model.active_peft_config.is_prompt_learning and hasattr(model.base_model, "merge_adapter")


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """What the adapter adds to its base, under PEFT's names on disk; embeddings too where they have grown."""
    return get_peft_model_state_dict(model, save_embedding_layers=embeddings_have_grown(model))


def load_adapter_state(model: PeftModel, state: dict[str, Tensor]) -> None:
    """Put back what `adapter_state` gave.

    Raises:
        ParleyError: When the state is of another adapter.
    """
    expected = adapter_state(model)
    if odd := sorted(expected.keys() ^ state.keys()):
        raise ParleyError(
            f"the adapter's weights do not fit this configuration: {odd[0]} and {len(odd) - 1} more differ."
        )
    try:
        set_peft_model_state_dict(model, state)
    except RuntimeError as error:
        raise ParleyError(f"the adapter's weights do not fit this configuration: {first_line(error)}") from error


def embeddings_have_grown(model: PeftModel) -> bool:
    """Whether the embeddings have more rows than the base's configuration on disk says.

    PEFT would find out by itself, but asks the hub for it, and waits for a hub that does not answer.
    """
    from src.models.loading import load_config

    base = base_model(model)
    try:
        rows = load_config(base.name_or_path).vocab_size if base.name_or_path else None
    except ParleyError:
        return False
    return rows is not None and embedding_matrix(base).shape[0] != rows


def _tuned_layers(model: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _head_weight_is_shared(base: PreTrainedModel) -> bool:
    head = base.get_output_embeddings()
    return head.get_base_layer().weight is embedding_matrix(base)


def _untie_adapted_head(base: PreTrainedModel) -> None:
    layer = base.get_output_embeddings().get_base_layer()
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=layer.weight.requires_grad)
    if not head_is_tied(base):
        untie_head(base)


def _check_targets(model: nn.Module, config: PeftConfig) -> None:
    targets = getattr(config, "target_modules", None)
    if not targets or targets == ALL_LINEAR:
        return
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(targets, str):
        missing = [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    else:
        missing = [t for t in sorted(targets) if not any(name == t or name.endswith(f".{t}") for name in names)]
    if missing:
        raise ParleyError(
            f"LoRA target {', '.join(missing)} matches no module of this {type(model).__name__}; "
            f"some that would: {', '.join(_candidates(model, missing[0]))}."
        )


def _candidates(model: nn.Module, wanted: str, most: int = 8) -> list[str]:
    """Last names of the linear layers, those that look like the wanted one first."""
    kinds = (nn.Linear, Conv1D)
    names = list(dict.fromkeys(name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, kinds)))
    close = difflib.get_close_matches(wanted, names, n=most, cutoff=0.3)
    return [*close, *(name for name in names if name not in close)][:most]
