"""A pretended GPU: the real code runs on a CPU with tensors that say `cuda:0`, to find what a GPU would refuse.

Within `PretendedGPU` a tensor of the device `cuda:0` is a shell around one on the CPU. Every operation is seen below
autograd and autocast, which take it for CUDA's: one that mixes two devices is refused as on a GPU, and one that would
make the host wait for the GPU is noted with the line that asked for it. Kernels, speed and memory are the CPU's, and
what CUDA's own kernels do within (deterministic or not, a limit of sizes, a library that is missing) is not seen.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch._dynamo  # which would read the replaced functions, were it first imported later
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from tests.pretended.core import accelerator
from tests.pretended.stand_ins import replaced
from tests.pretended.tensors import OnGPU, inner
from tests.pretended.waits import CROSSES, INDEXING, TAKES_NUMBERS, Waits, asked_from


class PretendedGPU:
    """Within the block there is a GPU, and the host's waits for it are noted.

    Attributes:
        waits: What was noted so far.
        generator: The GPU's random numbers.
    """

    def __init__(self) -> None:
        known = torch.__version__.startswith("2.13.") and sys.platform.startswith("linux")  # see `core`
        if not known or torch.version.cuda is not None:
            pytest.skip("a GPU is pretended only in torch 2.13 built without CUDA, on Linux")
        self.waits = Waits()
        self.generator = torch.Generator().manual_seed(0)
        self._generators: dict[int, Any] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> PretendedGPU:
        self._stack.enter_context(accelerator())
        self._stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # its threads may have been started
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # other than `.data`, it keeps the shells
        self._stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        _device_constructors()  # remembers what takes a default device, which is about to be replaced
        for owner, values in replaced(self.waits, self.generator, self._generators, lambda: _Mode(self)):
            self._stack.enter_context(patch.multiple(owner, **values))
        self._stack.enter_context(_Mode(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    # What an operation does

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation: check its devices, note whether the host would wait, and compute it on the CPU."""
        tensors = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, Tensor)]
        shells = [tensor for tensor in tensors if isinstance(tensor, OnGPU)]
        asked = kwargs.get("device")
        onto = bool(shells) if asked is None else torch.device(asked).type == "cuda"
        self._refuse_generator(kwargs.get("generator"), onto)
        if not onto and not shells:
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with _Mode(self):  # as in inference mode, where autograd does not take it apart
                return func.decompose(*args, **kwargs)
        packet = func.overloadpacket
        self._refuse_mixing(func, tensors)
        self.waits.of_operation(packet, args, kwargs, onto)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        with self._random(func, kwargs):
            out = func(*tree_map(inner, args), **tree_map(inner, kwargs))
        return self._wrapped(func, args, kwargs, out, onto)

    def _refuse_mixing(self, func: Any, tensors: list[Tensor]) -> None:
        packet = func.overloadpacket
        strangers = [tensor for tensor in tensors if not isinstance(tensor, OnGPU)]
        takes_numbers = torch.Tag.pointwise in func.tags or packet in TAKES_NUMBERS
        if len(strangers) in (0, len(tensors)) or packet in CROSSES:
            return
        if takes_numbers and all(tensor.dim() == 0 for tensor in strangers):
            return
        if packet in INDEXING and isinstance(tensors[0], OnGPU):
            values = tensors[-1] if "put" in str(packet) else tensors[0]
            if isinstance(values, OnGPU) or values.dim() == 0:
                return
        shapes = [tuple(tensor.shape) for tensor in strangers]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({func}; on the CPU: {shapes}; {asked_from()[0]})"
        )

    def _refuse_generator(self, generator: Any, onto: bool) -> None:
        if generator is not None and (generator._cdata in self._generators) != onto:
            raise RuntimeError(f"Expected a generator of the {'GPU' if onto else 'CPU'}'s, but found another")

    @contextlib.contextmanager
    def _random(self, func: Any, kwargs: dict[str, Any]) -> Iterator[None]:
        """Draw from the GPU's own random numbers, not the CPU's."""
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            yield
            return
        cpu = torch.get_rng_state()
        torch.set_rng_state(self.generator.get_state())
        try:
            yield
        finally:
            self.generator.set_state(torch.get_rng_state())
            torch.set_rng_state(cpu)

    def _wrapped(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any, onto: bool) -> Any:
        """The results as shells; what was written in place is the argument itself."""
        written = {}
        for place, argument in enumerate(func._schema.arguments):
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            if argument.alias_info is not None and argument.alias_info.is_write:
                for part in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(part, Tensor):
                        written[id(inner(part))] = part
                        if isinstance(part, OnGPU) and part.inner.shape != part.shape:
                            # torch keeps the shape of a shell for good; nothing of ours resizes one in place.
                            raise RuntimeError(f"{func} changes the shape of a tensor, which a shell cannot follow")

        def wrap(part: Any) -> Any:
            if not isinstance(part, Tensor):
                return part
            known = written.get(id(part))
            if known is not None or not onto:
                return part if known is None else known
            with torch.inference_mode(part.is_inference()):  # a view of another kind of tensor is of that kind
                return OnGPU(part, self)

        return tree_map(wrap, out)


class _Mode(TorchDispatchMode):
    """Hands a thread's operations to the GPU."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.gpu.compute(func, args, kwargs or {})
