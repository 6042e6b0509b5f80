"""A content hash that tells one base model from another."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

SAMPLES_PER_PARAMETER = 64


def fingerprint(model: nn.Module) -> str:
    """Hash a model's base weights, cheaply: names, shapes and an even sample of each parameter's values.

    What PEFT adds (its parameters, its prefixes in names) does not count, nor does the directory that the model
    came from: the same base gives the same value with an adapter and without. Values are compared as float32, so
    a base cast to bfloat16 is another base, as it is for the results. On the meta device names and shapes count.

    Args:
        model: A Hugging Face model, or a PEFT model around one.

    Returns:
        Sixteen hexadecimal digits.
    """
    adapter_prefix = (
        getattr(getattr(model, "base_model", None), "prefix", None) if hasattr(model, "peft_config") else None
    )
    parameters: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (plain := _plain_name(name, adapter_prefix)) is None:
            continue
        known = parameters.get(id(parameter))
        if known is None or plain < known[0]:  # tied parameters count once, under the first of their names
            parameters[id(parameter)] = (plain, parameter)
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters.values(), key=lambda item: item[0]):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(_sample(parameter))
    return digest.hexdigest()[:16]


def _plain_name(name: str, adapter_prefix: str | None) -> str | None:
    """A parameter's name in the base model; None for a parameter that PEFT added."""
    parts = name.split(".")
    if "modules_to_save" in parts or parts[0] == "prompt_encoder" or "trainable_tokens_delta" in parts:
        return None
    if adapter_prefix and any(part.startswith(adapter_prefix) for part in parts):
        return None
    plain = ".".join(part for part in parts if part not in ("base_layer", "original_module", "token_adapter"))
    return plain.removeprefix("base_model.model.").removeprefix("base_model.")


def _sample(parameter: nn.Parameter) -> bytes:
    if parameter.is_meta:
        return b""
    flat = parameter.detach().flatten()
    step = max(1, flat.numel() // SAMPLES_PER_PARAMETER)
    return flat[::step].to(device="cpu", dtype=torch.float32).numpy().tobytes()
