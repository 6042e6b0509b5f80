"""What makes the host wait for a GPU, and the line of ours that asked for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.pretended.tensors import OnGPU

ROOT = Path(__file__).resolve().parents[2]
HERE = f"{Path(__file__).parent}/"
aten = torch.ops.aten

WAITS = {  # operations whose result, or its size, the host has to know
    aten._local_scalar_dense: "item",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique",
    aten.equal: "equal",
    aten.allclose: "equal",
    aten.bincount: "bincount",
    aten.multinomial: "multinomial",  # it looks whether the probabilities are any
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
TAKES_NUMBERS = {aten.where, aten.masked_fill, aten.masked_fill_, aten.fill_, aten.fill, *INDEXING}
CROSSES = {aten.copy_, aten._to_copy}


class Wait(NamedTuple):
    """One moment at which the host would wait for the GPU.

    Attributes:
        kind: The operation, or the direction of a copy.
        place: The innermost line of ours: `src/models/rollout.py:168`; empty where none is involved.
        inner: The innermost line that is not torch's.
    """

    kind: str
    place: str
    inner: str


class Waits(list[Wait]):
    """The waits so far; `clear` it at will."""

    def note(self, kind: str) -> None:
        """Note that the host waits here."""
        self.append(Wait(kind, *asked_from()))

    def of_operation(self, packet: Any, args: Any, kwargs: dict[str, Any], onto: bool) -> None:
        """Note it where an operation makes the host wait.

        Args:
            packet: The operation.
            args: What it is given,
            kwargs: by place and by name.
            onto: Whether its result is on the GPU.
        """
        if packet in WAITS:
            self.note(WAITS[packet])
        elif packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            self.note("repeat_interleave")
        elif packet is aten.isin and all(isinstance(part, Tensor) for part in args[:2]):
            if args[1].numel() >= 10 * args[0].numel() ** 0.145:  # then torch sorts
                self.note("isin")
        elif packet in INDEXING:
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self.note("mask as index")
                elif index is not None and not isinstance(index, OnGPU):
                    self.note("copy to the GPU")
        elif packet in CROSSES:
            source = args[1] if packet is aten.copy_ else args[0]
            target = isinstance(args[0], OnGPU) if packet is aten.copy_ else onto
            self._copy(source, target, kwargs.get("non_blocking") or (source is not args[0] and args[2:] == (True,)))

    def _copy(self, source: Tensor, onto: bool, non_blocking: Any) -> None:
        if isinstance(source, OnGPU) and not onto:
            self.note("copy to the host")
        elif onto and not isinstance(source, OnGPU):
            if not non_blocking:
                self.note("copy to the GPU")
            elif not is_pinned(source):
                self.note("copy of pageable memory")


def asked_from() -> tuple[str, str]:
    """The innermost line of `src`, empty where there is none, and the innermost that is not torch's."""
    ours, inner, frame = "", "", sys._getframe(1)
    while frame is not None and not ours:
        name = frame.f_code.co_filename
        if not name.startswith(HERE) and "/torch/" not in name:
            path = name.partition("site-packages/")[2] or name.removeprefix(f"{ROOT}/")
            line = f"{path}:{frame.f_lineno}"
            inner = inner or line
            ours = line if line.startswith("src/") else ""
        frame = frame.f_back  # type: ignore[assignment]
    return ours, inner


def pinned(tensor: Tensor, *args: Any) -> Tensor:
    copy: Any = tensor.clone()
    copy.is_pretended_pinned = True
    return copy


def is_pinned(tensor: Tensor, *args: Any) -> bool:
    return getattr(tensor, "is_pretended_pinned", False)
