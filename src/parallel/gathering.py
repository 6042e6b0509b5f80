"""Gathers sharded weights for what needs no gradients: generation, a reference's log-probabilities, validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

_IS_GATHERED = "parley_is_gathered"


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Within the block every process has the whole weights, in compute precision, and needs no collective calls.

    So processes may generate different numbers of answers, of different lengths, call any part of the model, and merge
    adapters. Gathering once costs a fraction of gathering at every token, and takes the memory of the weights only, as
    there are no gradients. Every process must enter the block, and no graph may wait for its backward pass.

    Args:
        module: Sharded or not; what is gathered already stays so.
    """
    shards = [part for part in module.modules() if isinstance(part, FSDPModule)]
    if not shards or getattr(shards[0], _IS_GATHERED, False):
        yield
        return
    roots = _outermost(module)
    others: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        with _plain_tensors():
            for part in shards:
                setattr(part, _IS_GATHERED, True)
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()
            for owner, name, parameter in _kept_beside(module):
                others.append((owner, name, parameter))
                owner._parameters[name] = nn.Parameter(whole(parameter), requires_grad=False)
        yield
    finally:
        for owner, name, parameter in others:
            owner._parameters[name] = parameter
        with _plain_tensors():
            for part in shards:
                part.reshard()
                part.set_reshard_after_forward(part not in roots, recurse=False)
                setattr(part, _IS_GATHERED, False)


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Within the block create normal tensors without gradient, even inside validation's inference mode."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


def _outermost(module: nn.Module) -> set[nn.Module]:
    if isinstance(module, FSDPModule):
        return {module}
    return {one for child in module.children() for one in _outermost(child)}


def _kept_beside(module: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Sharded parameters that FSDP does not manage, such as a reference's."""
    return [
        (part, name, parameter)
        for part in module.modules()
        for name, parameter in part._parameters.items()
        if parameter is not None and isinstance(parameter, DTensor)
    ]


def reshard(module: nn.Module) -> None:
    """Free the gathered parameters of a module: the root keeps its own gathered after a forward pass."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered if it is sharded; then every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, which may be empty; the whole tensor if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all tensors together, a scalar, the same on every process; every process must call this.

    Args:
        tensors: Sharded or not.
    """
    return whole(torch.nn.utils.get_total_norm(tensors))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """The bytes that tensors take in this process.

    Args:
        tensors: Sharded or not.
    """
    return sum(local(tensor).numel() * tensor.element_size() for tensor in tensors)
