"""Compiles a model's blocks for training, by `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from src.errors import ParleyError
from src.models.tying import base_model
from src.parallel.blocks import blocks_of


def compile_blocks(model: PreTrainedModel | PeftModel, device: torch.device) -> None:
    """Have a model's blocks compiled when they are first called with gradients.

    Blocks of one kind share the compiled code. It holds for batches of every size, but those of one row, for which it
    is compiled once more. Without gradients, as in validation and in generation, whose caches would need code for each
    block, a model computes as before. Names of parameters do not change, and a copy of the model is compiled like it.

    Args:
        model: Changed in place.
        device: Where it will compute.

    Raises:
        ParleyError: There is nothing on this machine to compile for the device with.
    """
    _try(device)
    blocks = blocks_of(base_model(model))
    compiled = {kind: torch.compile(kind.forward, dynamic=True) for kind in {type(block) for block in blocks}}
    for block in blocks:
        block.forward = partial(_forward, compiled[type(block)], block)


def _forward(compiled: Callable[..., Any], block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    run = compiled if torch.is_grad_enabled() else type(block).forward
    return run(block, *args, **kwargs)


def _try(device: torch.device) -> None:
    """Compile next to nothing."""
    try:
        torch.compile(torch.exp)(torch.ones(2, device=device))
    except Exception as error:  # what is missing depends on the device
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ParleyError(
            f"torch_compile is true, but nothing can be compiled here ({said}); install what torch.compile needs, such "
            "as g++ on a CPU, or set model.init_args.torch_compile: false."
        ) from error
