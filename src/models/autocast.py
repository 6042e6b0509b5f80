"""Casting of frozen weights once instead of at every autocast call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from src.models.low_precision import is_quantized


@contextmanager
def cast_once(
    model: PreTrainedModel | PeftModel, *, frozen_only: bool = False, spare_head: bool = False
) -> Iterator[None]:
    """Within the block keep the linear layers' weights in autocast's dtype; without autocast do nothing.

    Autocast caches its casts of trained weights only. A frozen weight is cast at every call, which in decoding is at
    every token, and there costs as much as the product itself. Results are identical bit for bit; the cost is the
    memory of the cast weights within the block.

    Args:
        model: Any model; changed in place within the block.
        frozen_only: Leave trained weights unchanged, for blocks with a backward pass.
        spare_head: Leave the output head unchanged, for blocks that apply it in float32.
    """
    device = next(model.parameters()).device.type
    if not torch.is_autocast_enabled(device):
        yield
        return
    dtype = torch.get_autocast_dtype(device)
    spared = set(model.get_output_embeddings().modules()) if spare_head else set()
    kept = [
        (module, name, parameter)
        for module in model.modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module not in spared and not is_quantized(module.weight)
        for name, parameter in module._parameters.items()
        if parameter is not None and _is_castable(parameter, dtype) and not (frozen_only and parameter.requires_grad)
    ]
    try:
        for module, name, parameter in kept:  # not its data, which a head may share with the embeddings
            module._parameters[name] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        yield
    finally:
        for module, name, parameter in kept:
            module._parameters[name] = parameter


def _is_castable(parameter: nn.Parameter, dtype: torch.dtype) -> bool:
    """Whether a parameter is a whole float32 weight, neither sharded nor quantised."""
    return (
        type(parameter) is nn.Parameter
        and not isinstance(parameter.data, DTensor)
        and parameter.numel() > 0
        and parameter.dtype == torch.float32
        and dtype != torch.float32
    )
