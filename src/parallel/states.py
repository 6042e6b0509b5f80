"""Checkpoints of a sharded run as whole tensors, so that a run with any strategy can resume from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from src.errors import ParleyError
from src.parallel.gathering import whole
from src.parallel.sharding import shard_like

BEYOND_ROWS = {"Adafactor", "LBFGS", "Muon", "Rprop"}  # torch's and other libraries'


def gather_state(state: Any, *, keep: bool) -> Any:
    """Replace sharded tensors in nested containers by whole ones, gathered one by one; every process must call this.

    Args:
        state: A state dict, with the same structure on every process.
        keep: Whether this process keeps the tensors; on others they are replaced by empty ones.

    Returns:
        The state with tensors on the CPU; not to be used on processes that do not keep them.
    """

    def gather(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        with torch.no_grad():
            found = whole(value.detach())
            return found.cpu() if keep else found.new_empty(0, device="cpu")

    return tree_map(gather, state)


def gather_weights(module: nn.Module, state: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """A module's whole weights; a shared parameter is gathered once and stays one tensor under its several names.

    Args:
        module: The module.
        state: Its state dict, or a part of it.
        keep: Whether this process keeps the weights; every process must call this.

    Returns:
        The weights by name; empty on processes that do not keep them.
    """
    names = _first_names(module, state)
    found = {name: gather_state(value, keep=keep) for name, value in state.items() if names.get(name, name) == name}
    return {name: found[names.get(name, name)] for name in state} if keep else {}


def each_once(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which all names of a shared parameter have the same tensor again, as before sharding.

    Args:
        module: The module.
        state: Its state dict, or a part of it.
    """
    names = _first_names(module, state)
    return {name: state[names.get(name, name)] for name in state}


def _first_names(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Map each parameter's name in a state dict to the first of its names there."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in state:
            found[name] = first.setdefault(id(parameter), name)
    return found


def refuse_beyond_rows(optimizer: Optimizer) -> None:
    """Refuse an optimiser that does not work element by element, since a process has only some rows of a parameter.

    Args:
        optimizer: An optimiser of sharded parameters.

    Raises:
        ParleyError: It is such an optimiser.
    """
    name = next((kind.__name__ for kind in type(optimizer).__mro__ if kind.__name__ in BEYOND_ROWS), None)
    if name is not None:
        raise ParleyError(
            f"{name} looks at whole parameters, of which a sharded run has some rows a process; use another optimiser, "
            "such as torch.optim.AdamW, or trainer.strategy: ddp."
        )


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser's whole state; each process keeps the parts that belong to its shards.

    Args:
        optimizer: An optimiser of sharded or whole parameters.
        state: Its `state_dict` as it would be without shards.
    """

    def cut(_optimizer: Optimizer, merged: dict[str, Any]) -> dict[str, Any]:
        """Split the state like the parameters; runs after other hooks have matched the two."""
        ids = [id_ for group in merged["param_groups"] for id_ in group["params"]]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        owners = dict(zip(ids, parameters, strict=True))
        kept = {
            id_: {name: _cut(value, owners[id_]) for name, value in values.items()} if id_ in owners else values
            for id_, values in merged["state"].items()
        }
        return {**merged, "state": kept}

    handle = optimizer.register_load_state_dict_pre_hook(cut)
    try:
        optimizer.load_state_dict(dict(state))
    finally:
        handle.remove()


def _cut(value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return shard_like(value, parameter) if value.shape == parameter.shape else value.clone()  # it may lie in a file
