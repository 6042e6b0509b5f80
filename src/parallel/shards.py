"""Splits a checkpoint into each process's shards and the rest, and joins the parts of any number of processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Replicate

_KEY, _SHAPE = "parley_shard", "shape"


@dataclass(frozen=True)
class Cut:
    """A checkpoint split into this process's shards and the rest.

    Attributes:
        rest: The checkpoint, with each sharded tensor replaced by its name and shape; the same on every process.
        own: This process's rows of the sharded tensors by name, each with the number of its first row. Tensors whose
            same rows another process (a replica) keeps are left out.
    """

    rest: dict[str, Any]
    own: dict[str, dict[str, Any]]


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply a function to the leaves of nested containers; container types and their attributes are kept."""
    if isinstance(value, dict):
        changed = copy.copy(value)
        for key, item in value.items():
            changed[key] = map_leaves(item, change)
        return changed
    if type(value) in (list, tuple):
        return type(value)(map_leaves(item, change) for item in value)
    return change(value)


def copier(device: str | None = None) -> Callable[[Any], Any]:
    """A function for `map_leaves` that copies tensors, each memory only once, and returns other leaves unchanged.

    Args:
        device: The device of the copies; that of each tensor when left out.
    """
    copies: dict[tuple[Any, ...], Tensor] = {}

    def change(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        key = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if key not in copies:
            copies[key] = value.detach().to(device or value.device, copy=True)
        return copies[key]

    return change


def cut(checkpoint: dict[str, Any]) -> Cut:
    """Split a checkpoint, without communication.

    Args:
        checkpoint: Its content, in which tensors may be sharded along their first dimension.
    """
    names: dict[int, str] = {}
    own: dict[str, dict[str, Any]] = {}

    def take(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        if id(value) not in names:  # of several names for one tensor, the first
            name = names[id(value)] = str(len(names))
            if _keeps(value):
                own[name] = {"first": _first_row(value), "rows": value.to_local().detach()}
        return {_KEY: names[id(value)], _SHAPE: list(value.shape)}

    return Cut(map_leaves(checkpoint, take), own)


def _shard_dimension(tensor: DTensor) -> int | None:
    return next((place for place, kind in enumerate(tensor.placements) if kind.is_shard()), None)


def _keeps(tensor: DTensor) -> bool:
    """Whether this process is the replica that keeps its rows."""
    where = tensor.device_mesh.get_coordinate()
    assert where is not None
    kinds = tensor.placements
    return all(place == 0 for place, kind in zip(where, kinds, strict=True) if isinstance(kind, Replicate))


def _first_row(tensor: DTensor) -> int:
    """The number of this process's first row; rows are split as by `torch.chunk`."""
    dimension = _shard_dimension(tensor)
    if dimension is None:
        return 0
    where = tensor.device_mesh.get_coordinate()
    assert where is not None
    share = -(-tensor.shape[0] // tensor.device_mesh.size(dimension))
    return min(where[dimension] * share, tensor.shape[0])


def join(
    rest: dict[str, Any], parts: Sequence[dict[str, dict[str, Any]]], *, whole: str | None = None
) -> dict[str, Any]:
    """Join a checkpoint that was split on any number of processes.

    Args:
        rest: `Cut.rest`.
        parts: `Cut.own` of each process.
        whole: The only entry whose tensors are joined; other sharded tensors are then on the meta device, with dtype
            and shape only. All are joined when left out.

    Raises:
        ValueError: Rows are missing.
    """
    joined: dict[tuple[str, bool], Tensor] = {}

    def find(name: str, shape: list[int], wanted: bool) -> Tensor:
        if (name, wanted) not in joined:
            pieces = sorted((part[name] for part in parts if name in part), key=lambda piece: int(piece["first"]))
            pieces = [piece for piece in pieces if len(piece["rows"])] or pieces[:1]
            row = 0
            for piece in pieces:
                if piece["first"] != row:
                    raise ValueError(f"rows from {row} on of a tensor are in no shard")
                row += len(piece["rows"])
            if not pieces or row != shape[0]:
                raise ValueError(f"rows from {row} to {shape[0]} of a tensor are in no shard")
            rows = [piece["rows"] for piece in pieces]
            joined[name, wanted] = torch.cat(rows) if wanted else rows[0].new_empty(shape, device="meta")
        return joined[name, wanted]

    def put(value: Any, wanted: bool) -> Any:
        if isinstance(value, dict):
            if _KEY in value:
                return find(value[_KEY], value[_SHAPE], wanted)
            for key, item in value.items():
                value[key] = put(item, wanted)
            return value
        if type(value) in (list, tuple):
            return type(value)(put(item, wanted) for item in value)
        return value

    return {key: put(value, whole in (None, key)) for key, value in rest.items()}
