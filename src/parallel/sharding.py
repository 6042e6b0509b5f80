"""Shards: which parts of a model are gathered together while it computes, and in which precision.

PyTorch's FSDP2 (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html): every parameter is cut along
its first dimension, and each process holds its part, the gradient's and the optimiser's. A block's parameters are whole
only while the block computes; what lies outside blocks (embeddings, the last norm, the output head) is one more unit,
the root's. As each parameter stays one of its own, trained and frozen ones mix, and names stay as they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

RUN_PART = "run_part"


def shard(root: nn.Module, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Leave each process its part of every parameter, in place.

    Args:
        root: A model whose own forward pass, or `run_part`, is how it is called.
        mesh: The processes; of two dimensions, the first holds copies and the second shards.
        dtype: What blocks compute in, and what is sent of them, where that is not their weights' own; gradients are
            reduced in float32 whatever it is. The root's parameters keep theirs, so that an output head stays exact.
    """
    for block in blocks_of(root):
        if dtype is not None:
            block.register_forward_pre_hook(_caster(dtype), with_kwargs=True)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    assert isinstance(root, FSDPModule)
    root._get_fsdp_state()._lazy_init()  # now: else the first part that is called by itself is taken for the root
    setattr(root, RUN_PART, _run)
    register_fsdp_forward_method(root, RUN_PART)


def _run(*, part: Callable[..., Any], **kwargs: Any) -> Any:
    return part(**kwargs)


def run_part(root: nn.Module, part: Callable[..., Any], **kwargs: Any) -> Any:
    """Call a part of a model, such as its encoder, by itself.

    Some of its parameters are the root's, which gathers them when it is called as a whole, or through here.

    Args:
        root: The model, in shards or not.
        part: One of its modules, or a function of several.
        **kwargs: The part's.
    """
    run = getattr(root, RUN_PART) if isinstance(root, FSDPModule) else _run
    return run(part=part, **kwargs)


def blocks_of(root: nn.Module) -> list[nn.Module]:
    """The parts of a model that are sharded each by itself, inner ones first.

    They are what the architecture names as not to be split (`_no_split_modules`); where it names nothing that is there,
    the items of its outermost lists of modules of one class, which is what layers are kept in. A part that shares a
    parameter with another one, or with what lies outside, is left to the root.

    Args:
        root: The model.
    """
    named = set(getattr(root, "_no_split_modules", None) or ())
    found = [one for one in root.modules() if type(one).__name__ in named and one is not root]
    found = [one for one in found or _layers(root) if next(one.parameters(), None) is not None]
    owners = Counter(_parameter_slots(root))
    alone = [one for one in found if all(owners[key] == n for key, n in Counter(_parameter_slots(one)).items())]
    return alone[::-1]


def _layers(module: nn.Module) -> Iterable[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len({type(item) for item in child}) == 1:
            yield from child
        else:
            yield from _layers(child)


def _parameter_slots(module: nn.Module) -> list[int]:
    """The parameter of each place that there is for one: twice where two places share it."""
    return [id(one) for part in module.modules() for one in part._parameters.values() if one is not None]


def _caster(dtype: torch.dtype) -> Callable[..., Any]:
    """A hook that casts what a block is given.

    FSDP's own makes minus infinity of a mask's lowest float32, and NaN of a row that is masked as a whole.
    """
    lowest = torch.finfo(dtype).min

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        return value.to(dtype).clamp(min=lowest)

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tree_map(cast, args), tree_map(cast, kwargs)

    return hook


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that is whole on every process, cut as another one is.

    Args:
        tensor: The same on every process, which sends nothing.
        like: Of the same shape; where it is whole, so is what comes back.
    """
    if not isinstance(like, DTensor):
        return tensor
    mesh = like.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, like.placements, src_data_rank=None)


def is_sharded(module: nn.Module) -> bool:
    """Whether a module, or a part of it, is in shards."""
    return any(isinstance(part, FSDPModule) for part in module.modules())
