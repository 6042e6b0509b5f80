"""The blocks that a transformer is built of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn


def blocks_of(root: nn.Module) -> list[nn.Module]:
    """The blocks of a model, inner ones first: separate units of sharding and of compiling.

    They are the modules that the architecture names as not to be split (`_no_split_modules`); if there are none, the
    items of its outermost lists of modules of one class, which hold the layers. A part that shares a parameter with
    anything outside it belongs to the root's unit.

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
    """The ids of all parameters of all submodules; a shared parameter occurs several times."""
    return [id(one) for part in module.modules() for one in part._parameters.values() if one is not None]
