"""What autocast does again and again, done once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@contextmanager
def cast_once(
    model: PreTrainedModel | PeftModel, *, frozen_only: bool = False, spare_head: bool = False
) -> Iterator[None]:
    """Within the block the linear layers' weights are in autocast's dtype; outside autocast nothing happens.

    Autocast keeps what it has cast for weights that are trained. A frozen weight it casts at every call, which in
    decoding is at every token, and there costs as much as the product itself. The answers are the same to the bit; the
    price is the memory of the cast weights while the block lasts.

    Args:
        model: Any model; switched in place for the length of the block.
        frozen_only: Leave weights alone that are trained, for a block that goes backward.
        spare_head: Leave the output head's weights alone, for a block that applies them in float32.
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
        if isinstance(module, (nn.Linear, Conv1D)) and module not in spared
        for name, parameter in module._parameters.items()
        if parameter is not None and _is_castable(parameter, dtype) and not (frozen_only and parameter.requires_grad)
    ]
    try:
        for module, name, parameter in kept:  # the attribute, not its data: a head may share it with the embeddings
            module._parameters[name] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        yield
    finally:
        for module, name, parameter in kept:
            module._parameters[name] = parameter


def _is_castable(parameter: nn.Parameter, dtype: torch.dtype) -> bool:
    """A whole weight in float32: none of FSDP's shards, nothing quantised."""
    return (
        type(parameter) is nn.Parameter
        and not isinstance(parameter.data, DTensor)
        and parameter.numel() > 0
        and parameter.dtype == torch.float32
        and dtype != torch.float32
    )
