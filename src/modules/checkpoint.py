"""A checkpoint's description of its model, and checks of whether it fits a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from src import __version__
from src.contracts import CHECKPOINT_FORMAT
from src.errors import ParleyError
from src.models.fingerprint import base_record
from src.models.loading import identify
from src.models.tying import base_model


def describe(model: PreTrainedModel | PeftModel) -> dict[str, Any]:
    """Describe a model for export and resuming, in plain values that load with `weights_only=True`.

    Args:
        model: The model that is trained, with its adapter.
    """
    base = identify(model) if isinstance(model, PeftModel) else base_record(model)
    settings = getattr(base_model(model), "generation_config", None)  # classifiers have none
    return {
        "format": CHECKPOINT_FORMAT,
        "version": __version__,
        "base": {"name": base.name, "fingerprint": base.fingerprint, "gguf_file": base.gguf_file},
        "config": {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"},
        "outputs": base.outputs,
        "generation": _plain(settings.to_dict()) if settings is not None else None,
        "adapter": _plain(model.active_peft_config.to_dict()) if isinstance(model, PeftModel) else None,
    }


def _plain(value: Any) -> Any:
    """Sets and enumerations to lists and strings."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(getattr(value, "value", value))


def keep_adapter(state_dict: dict[str, Tensor], module: nn.Module, model: PeftModel) -> dict[str, Tensor]:
    """Leave a frozen base out of a state dict; trained weights stay, and so do untrained ones that PEFT added.

    Args:
        state_dict: The Module's state dict.
        module: The Module.
        model: Its model.
    """
    prefix = getattr(model.base_model, "prefix", None)
    base = {
        name
        for name, parameter in module.named_parameters(remove_duplicate=False)  # tied ones: under each name
        if not parameter.requires_grad and not (prefix and any(part.startswith(prefix) for part in name.split(".")))
    }
    return {name: tensor for name, tensor in state_dict.items() if not _is_of(name, base)}


def _is_of(name: str, parameters: set[str]) -> bool:
    """Whether a tensor is one of the parameters, or lies below one: the scales of a quantised one."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in parameters for length in range(len(parts), 0, -1))


def refuse_other_base(checkpoint: dict[str, Any], model: PreTrainedModel | PeftModel) -> None:
    """Refuse a checkpoint that belongs to another model, before anything is loaded.

    Raises:
        ParleyError: Another program's checkpoint, another base below an adapter, or other shapes.
    """
    saved = checkpoint.get("parley")
    if saved is None:
        raise ParleyError("this checkpoint was not written by Parley; give one from a run's checkpoints directory.")
    base, name = saved["base"], base_model(model).name_or_path
    has_adapter = isinstance(model, PeftModel)
    if saved.get("outputs") != base_record(model).outputs:
        kind = "a language model" if saved.get("outputs") is None else "a reward model"
        raise ParleyError(
            f"the checkpoint holds {kind}, which {name!r} is not here; give a checkpoint of this Module's."
        )
    if (saved["adapter"] is not None) != has_adapter:
        kinds = {True: "an adapter", False: "a whole model"}
        raise ParleyError(
            f"the checkpoint holds {kinds[not has_adapter]} and this run trains {kinds[has_adapter]}; "
            "set model.init_args.lora as in the checkpoint's run."
        )
    if has_adapter and base["fingerprint"] != identify(model).fingerprint:
        raise ParleyError(
            f"the checkpoint's adapter was trained on {base['name']!r}, and {name!r} has other weights; "
            "give the base model that it was trained on."
        )
    saved_shapes = {key: tensor.shape for key, tensor in checkpoint["state_dict"].items() if key.startswith("model.")}
    expected = {
        f"model.{key}": parameter.shape for key, parameter in model.named_parameters() if parameter.requires_grad
    }
    for key, shape in expected.items():
        if saved_shapes.get(key) != shape:
            there = "lacks it" if key not in saved_shapes else f"has {tuple(saved_shapes[key])}"
            raise ParleyError(
                f"the checkpoint (trained from {base['name']!r}) does not fit {name!r}: {key} is {tuple(shape)} here "
                f"and the checkpoint {there}; use the same base model and lora settings."
            )
    if more := sorted(saved_shapes.keys() - {f"model.{key}" for key in model.state_dict()}):
        raise ParleyError(
            f"the checkpoint (trained from {base['name']!r}) holds more than {name!r} has here, such as {more[0]}; "
            "use the same base model and lora settings."
        )


def state_of_method(
    checkpoint: Mapping[str, Any], key: str, *, method: str, reference: str, name: str
) -> dict[str, Any]:
    """A method's state in a checkpoint, after checking that it is of the same method and the same reference.

    Args:
        checkpoint: Its content.
        key: The key of the method's state, which has `method` and `reference` in it.
        method: The Module's class.
        reference: The reference's fingerprint.
        name: The model that training started from.

    Raises:
        ParleyError: The method or the reference is another one.
    """
    state: dict[str, Any] | None = checkpoint.get(key)
    if state is None or state["method"] != method:
        kind = "another kind of training" if state is None else state["method"]
        raise ParleyError(
            f"this checkpoint is of {kind}, not of {method}; `parley export` it and give the directory as "
            "model.init_args.model_name_or_path."
        )
    if state["reference"] != reference:
        raise ParleyError(
            f"the checkpoint's run started from other weights than {name!r} has, which would change the reference; "
            "give the model that it started from."
        )
    return state
