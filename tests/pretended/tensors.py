"""Tensors of a pretended GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

if TYPE_CHECKING:
    from tests.pretended.gpu import PretendedGPU

DEVICE = torch.device("cuda:0")


class OnGPU(torch.Tensor):
    """A tensor that says it is on the GPU; `inner` is the one on the CPU that holds its values."""

    inner: Tensor
    gpu: PretendedGPU
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, gpu: PretendedGPU) -> OnGPU:
        shell = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        shell.inner, shell.gpu = inner, gpu
        return shell

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Without the mode, as in other threads."""
        shells = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, OnGPU)]
        return shells[0].gpu.compute(func, args, kwargs or {})

    @property
    def data(self) -> Any:
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: Any) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(self._listed(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(self._listed(index), value)

    def _listed(self, index: Any) -> Any:
        """An index with tensors in place of lists, which torch makes on the GPU out of a mode's sight."""
        if isinstance(index, tuple):
            return tuple(map(self._listed, index))
        if not isinstance(index, list):
            return index
        return torch.tensor(index, dtype=None if index else torch.long, device=DEVICE)

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        self.gpu.waits.note("print")
        return f"OnGPU({self.inner!r})"

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    def tolist(self) -> Any:
        self.gpu.waits.note("tolist")
        return self.inner.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copy: Any = OnGPU(self.inner.clone(), self.gpu).requires_grad_(self.requires_grad)
            copy.__dict__ |= {"_is_param": True} if isinstance(self, torch.nn.Parameter) else {}
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.gpu.waits.note("saved")
        return self.inner.detach().__reduce_ex__(protocol)


def inner(part: Any) -> Any:
    """What computes on the CPU in a tensor's place; anything else is itself."""
    return part.inner if isinstance(part, OnGPU) else part
