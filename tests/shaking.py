"""Models that say various things, where fresh ones repeat themselves."""

from __future__ import annotations

import torch


def shaken(model: torch.nn.Module, only: str = "", *, size: float = 0.25, seed: int = 1) -> None:
    """Add noise of this size to the parameters whose name has this in it, the same one every time."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter += size * torch.randn(parameter.shape, generator=generator)
