"""What a device computes faster by other means: the same functions, up to rounding."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from src.models.cpu import speed_up_on_cpu
from src.models.fused import fuse_gelu, fuse_norms


def speed_up(model: PreTrainedModel | PeftModel, device: torch.device, *, with_attention: bool) -> None:
    """Replace parts of a model for training on a device; weights, their names and the configuration stay.

    Args:
        model: Changed in place.
        device: Where it will compute.
        with_attention: Whether attention may be replaced too.
    """
    if device.type == "cpu":
        speed_up_on_cpu(model, with_attention=with_attention)
    else:
        fuse_gelu(model)
        fuse_norms(model)
