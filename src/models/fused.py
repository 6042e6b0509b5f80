"""Operations that transformers spells out and PyTorch has as one: the same functions, up to rounding.

A GPU spends much of a small model's step in reading and writing activations between such operations, and in launching
them: "gelu_new", which FLAN-T5 and GPT-2 use, is eight of them, and a root mean square norm is five.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, NewGELUActivation


def fuse_gelu(model: nn.Module) -> None:
    """Replace a model's "gelu_new" by PyTorch's GELU with tanh."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is NewGELUActivation:
                setattr(parent, name, GELUTanh().train(child.training))


def fuse_norms(model: nn.Module) -> None:
    """Replace a model's root mean square norms by PyTorch's (Zhang and Sennrich 2019, arXiv:1910.07467).

    Their parameters, and the parameters' names, stay. Which classes are such norms is found out by trying: T5's,
    Llama's and those that are copies of it are. Norms that have an offset, or are gated, are left as they are.
    """
    equal: dict[type[nn.Module], bool] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child)
            if kind not in equal:
                equal[kind] = _is_rms_norm(child)
            if equal[kind]:
                setattr(parent, name, FusedNorm(child))


class FusedNorm(nn.RMSNorm):
    """A root mean square norm as one operation, where its input is of its weights' dtype; as it was elsewhere.

    Args:
        norm: Of transformers; its weights are shared.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(norm.weight.shape, norm.variance_epsilon, elementwise_affine=False)  # type: ignore[arg-type]
        self.weight = norm.weight  # type: ignore[assignment]
        self.variance_epsilon = norm.variance_epsilon
        self._own = type(norm).forward
        self.train(norm.training)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise, (..., hidden); autocast, which would have it in float32, changes nothing."""
        if hidden_states.dtype != self.weight.dtype:
            return self._own(self, hidden_states)
        with torch.autocast(hidden_states.device.type, enabled=False):
            return super().forward(hidden_states)


@torch.no_grad()
def _is_rms_norm(module: nn.Module) -> bool:
    """Whether a module of transformers computes what `torch.nn.RMSNorm` does."""
    own = dict(module.named_parameters())
    if not (own.keys() == {"weight"} and own["weight"].dim() == 1 and hasattr(module, "variance_epsilon")):
        return False
    takes, weight = list(inspect.signature(module.forward).parameters), own["weight"]
    if len(takes) != 1 or weight.is_meta:
        return False
    chance = torch.Generator("cpu").manual_seed(0)
    hidden = (3 * torch.randn(4, len(weight), generator=chance, device="cpu")).to(weight)
    with torch.autocast(weight.device.type, enabled=False):
        expected, found = module(hidden), FusedNorm(module)(hidden)
    return expected.dtype == found.dtype and torch.allclose(expected.float(), found.float(), rtol=0.02, atol=1e-3)
