"""Tied and untied output heads and embeddings.

T5 v1.1, FLAN-T5 and mT5 are untied. Since transformers 5, `T5Config` and `MT5Config` have `tie_word_embeddings=True`
whatever the file says: `T5Config` keeps the old flag as `scale_decoder_outputs`, `MT5Config` drops it. A model
built from such a config has one matrix, `load_state_dict` then overwrites one of two by the other, and every later
`tie_weights()` (resizing calls it) would do so again. The functions here keep the two apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from src.errors import ParleyError

T5_FAMILY = ("t5", "mt5", "umt5")


def wants_untied_head(config: PreTrainedConfig) -> bool:
    """Whether a model of this configuration has an untied head.

    Always true for mT5, as for its published weights, since the configuration no longer has the flag.
    """
    if config.model_type == "t5":
        return not config.scale_decoder_outputs
    return config.model_type in T5_FAMILY or not getattr(config, "tie_word_embeddings", False)


def head_is_tied(model: PreTrainedModel) -> bool:
    """Whether the output head and the input embeddings are one parameter."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def untie_head(model: PreTrainedModel) -> None:
    """Untie the head permanently, with a copy of a shared matrix.

    The mapping that `tie_weights()` and `save_pretrained` use is reduced on this instance; the config is not changed,
    since T5's encoder and decoder share their embeddings by it.
    """
    head = model.get_output_embeddings()
    if head is None:
        return
    if head_is_tied(model):
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    names = {f"{name}.weight" for name, module in model.named_modules() if module is head}
    model._tied_weights_keys = {k: v for k, v in (model._tied_weights_keys or {}).items() if k not in names}
    for name in names:
        model.all_tied_weights_keys.pop(name, None)


def settle_head(model: PreTrainedModel, *, untied: bool) -> PreTrainedModel:
    """Tie or untie a freshly loaded model's head as its weights or its file have it.

    Args:
        model: The model, loaded.
        untied: Whether the configuration file says untied; different weights count as untied in any case.

    Returns:
        The same model.
    """
    if untied or not head_is_tied(model):
        untie_head(model)
    return model


def load_state(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict so that tied parameters do not overwrite each other.

    If the model is tied but the state dict has two different matrices, the head is untied first. In the opposite case,
    the head's own matrix gets the shared values.

    Args:
        model: A Hugging Face model, or a PEFT model around one.
        state_dict: A state dict of such a model.

    Raises:
        ParleyError: Keys or shapes do not fit, or two names of one parameter have different values.
    """
    base = base_model(model)
    state = dict(state_dict)
    if (head := base.get_output_embeddings()) is not None:
        head_names = set(_names(model, head.weight))
        input_names = set(_names(model, embedding_matrix(base)))
        if head_is_tied(base):
            own = {name for name in head_names if _belongs_to(model, name, head)}
            if _differ(state, own, input_names - own):
                untie_head(base)
        elif not head_names & state.keys() and (source := next(iter(input_names & state.keys()), None)):
            state.update(dict.fromkeys(head_names, state[source]))
    for names in _shared_names(model):
        present = [name for name in names if name in state]
        if any(not _same(state[present[0]], state[name]) for name in present[1:]):
            raise ParleyError(
                f"the weights give {' and '.join(present)} different values, but in this model they are one."
            )
        if present:
            state.update({name: state[present[0]] for name in names if name not in state})
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ParleyError(f"the weights do not fit this model: {' '.join(lines[1:3])[:300]}") from error


def embedding_matrix(model: PreTrainedModel) -> nn.Parameter:
    """The input embeddings, shape (rows, width), also if PEFT wraps them."""
    module: Any = model.get_input_embeddings()
    module = getattr(module, "original_module", module)  # PEFT wraps it if embeddings or single rows are trained
    matrix = (module.get_base_layer() if hasattr(module, "get_base_layer") else module).weight
    assert isinstance(matrix, nn.Parameter)
    return matrix


def base_model(model: Any) -> PreTrainedModel:
    """The Hugging Face model, also if PEFT wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def positions(model: Any) -> int | None:
    """The number of positions of a model; None for no limit."""
    return getattr(base_model(model).config.get_text_config(decoder=True), "max_position_embeddings", None)


def hidden_size(model: Any) -> int:
    """The width of the decoder's hidden states; T5Gemma has it in its decoder's configuration."""
    return int(base_model(model).config.get_text_config(decoder=True).hidden_size)


def _names(model: nn.Module, parameter: Tensor) -> list[str]:
    return [name for name, other in model.named_parameters(remove_duplicate=False) if other is parameter]


def _shared_names(model: nn.Module) -> list[list[str]]:
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    return [names for names in groups.values() if len(names) > 1]


def _belongs_to(model: nn.Module, parameter_name: str, module: nn.Module) -> bool:
    owner = model.get_submodule(parameter_name.rpartition(".")[0])
    return owner is module or any(part is owner for part in module.modules())


def _differ(state: Mapping[str, Tensor], left: set[str], right: set[str]) -> bool:
    return any(not _same(state[a], state[b]) for a in left & state.keys() for b in right & state.keys())


def _same(left: Tensor, right: Tensor) -> bool:
    if left is right or left.shape != right.shape or left.is_meta or right.is_meta:
        return left is right or (left.shape == right.shape and left.is_meta and right.is_meta)
    return torch.equal(left, right)
