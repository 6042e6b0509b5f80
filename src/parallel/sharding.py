"""Shards a model: which of its parts are gathered together for computation, and in which precision.

PyTorch's FSDP2 (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html): every parameter is split along
its first dimension, and each process holds its part, the gradient's and the optimiser's. A block's parameters are whole
only while the block computes; what lies outside blocks (embeddings, the last norm, the output head) is one more unit,
the root's. Since parameters are sharded separately, trained and frozen ones may be mixed, and names do not change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from src.parallel.blocks import blocks_of

RUN_PART = "run_part"


def shard(root: nn.Module, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Shard every parameter over the processes, in place.

    Args:
        root: A model that is called by its own forward pass or by `run_part`.
        mesh: The processes; in two dimensions, the first replicates and the second shards.
        dtype: The type in which blocks are gathered and compute; their weights' own when None. Gradients are always
            reduced in float32. The root's parameters keep their type, so that an output head stays exact.
    """
    for block in blocks_of(root):
        if dtype is not None:
            block.register_forward_pre_hook(_caster(dtype), with_kwargs=True)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    assert isinstance(root, FSDPModule)
    root._get_fsdp_state()._lazy_init()  # now: else FSDP takes the first part that is called by itself for the root
    setattr(root, RUN_PART, _run)
    register_fsdp_forward_method(root, RUN_PART)


def _run(*, part: Callable[..., Any], **kwargs: Any) -> Any:
    return part(**kwargs)


def run_part(root: nn.Module, part: Callable[..., Any], **kwargs: Any) -> Any:
    """Call a part of a model, such as its encoder, by itself.

    Some of its parameters belong to the root's unit, which is gathered when the root is called, or by this function.

    Args:
        root: The model, sharded or not.
        part: One of its modules, or a function that calls several.
        **kwargs: The part's arguments.
    """
    run = getattr(root, RUN_PART) if isinstance(root, FSDPModule) else _run
    return run(part=part, **kwargs)


def _caster(dtype: torch.dtype) -> Callable[..., Any]:
    """A hook that casts a block's inputs.

    FSDP's own cast turns a mask's lowest float32 into minus infinity, which gives NaN for a fully masked row.
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
    """This process's shard of a tensor that is whole on every process, split like another tensor.

    Args:
        tensor: The same on every process; nothing is communicated.
        like: A tensor of the same shape; if it is not sharded, `tensor` is returned unchanged.
    """
    if not isinstance(like, DTensor):
        return tensor
    mesh = like.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, like.placements, src_data_rank=None)


def is_sharded(module: nn.Module) -> bool:
    """Whether a module, or a part of it, is sharded."""
    return any(isinstance(part, FSDPModule) for part in module.modules())
