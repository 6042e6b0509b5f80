"""A pretended GPU: the real code runs on a CPU with tensors that say `cuda:0`, to find what a GPU would refuse.

Within `PretendedGPU` a tensor of the device `cuda:0` is a shell around one on the CPU. Every operation is seen below
autograd and autocast, which take it for CUDA's: one that mixes two devices is refused as on a GPU, and one that would
make the host wait for the GPU is noted with the line that asked for it. Kernels, speed and memory are the CPU's, and
what CUDA's own kernels do within (deterministic or not, a limit of sizes, a library that is missing) is not seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch._dynamo  # which would read the replaced functions, were it first imported later
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ROOT = Path(__file__).resolve().parents[1]
DEVICE = torch.device("cuda:0")
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
        self.gpu.note("print")
        return f"OnGPU({self.inner!r})"

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    def tolist(self) -> Any:
        self.gpu.note("tolist")
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
        self.gpu.note("saved")
        return self.inner.detach().__reduce_ex__(protocol)


class _InstanceOfReal(type(torch._C.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, torch._C.Generator)


def _generators(on_gpu: dict[int, Any]) -> type:
    """What stands for `torch.Generator`, and takes the device `cuda`.

    Args:
        on_gpu: Filled with those of the GPU, by the address that torch knows them by.
    """

    class Generator(torch._C.Generator, metaclass=_InstanceOfReal):
        def __new__(cls, device: Any = "cpu") -> Any:
            made = super().__new__(cls, "cpu")
            if torch.device(device).type == "cuda":
                on_gpu[made._cdata] = made
            return made

        @property
        def device(self) -> torch.device:
            return DEVICE if self._cdata in on_gpu else torch.device("cpu")

    return Generator


class PretendedGPU:
    """Within the block there is a GPU, and the host's waits for it are noted.

    Attributes:
        waits: What was noted so far; `clear` it at will.
        generator: The GPU's random numbers.
    """

    def __init__(self) -> None:
        known = torch.__version__.startswith("2.13.") and sys.platform.startswith("linux")  # `_accelerator` goes deep
        if not known or torch.version.cuda is not None:
            pytest.skip("a GPU is pretended only in torch 2.13 built without CUDA, on Linux")
        self.waits: list[Wait] = []
        self.generator = torch.Generator().manual_seed(0)
        self._generators: dict[int, Any] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> PretendedGPU:
        self._stack.enter_context(_accelerator())
        self._stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # its threads may have been started
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # other than `.data`, it keeps the shells
        self._stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        _device_constructors()  # remembers what takes a default device, which is about to be replaced
        for owner, values in self._replaced():
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
        self._note_waits(packet, args, kwargs, onto)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        with self._random(func, kwargs):
            out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
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
            f"({func}; on the CPU: {shapes}; {self._place()[0]})"
        )

    def _refuse_generator(self, generator: Any, onto: bool) -> None:
        if generator is not None and (generator._cdata in self._generators) != onto:
            raise RuntimeError(f"Expected a generator of the {'GPU' if onto else 'CPU'}'s, but found another")

    def _note_waits(self, packet: Any, args: Any, kwargs: dict[str, Any], onto: bool) -> None:
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
            self._note_copy(
                source, target, kwargs.get("non_blocking") or (source is not args[0] and args[2:] == (True,))
            )

    def _note_copy(self, source: Tensor, onto: bool, non_blocking: Any) -> None:
        if isinstance(source, OnGPU) and not onto:
            self.note("copy to the host")
        elif onto and not isinstance(source, OnGPU):
            if not non_blocking:
                self.note("copy to the GPU")
            elif not _is_pinned(source):
                self.note("copy of pageable memory")

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
                        written[id(_inner(part))] = part
                        if isinstance(part, OnGPU) and part.inner.shape != part.shape:
                            raise NotImplementedError(f"{func} changes the shape of what it writes into")

        def wrap(part: Any) -> Any:
            if not isinstance(part, Tensor):
                return part
            known = written.get(id(part))
            if known is not None or not onto:
                return part if known is None else known
            with torch.inference_mode(part.is_inference()):  # a view of another kind of tensor is of that kind
                return OnGPU(part, self)

        return tree_map(wrap, out)

    # What was noted

    def note(self, kind: str) -> None:
        """Note that the host waits here."""
        self.waits.append(Wait(kind, *self._place()))

    def _place(self) -> tuple[str, str]:
        ours, inner, frame = "", "", sys._getframe(1)
        while frame is not None and not ours:
            name = frame.f_code.co_filename
            if name != __file__ and "/torch/" not in name:
                path = name.partition("site-packages/")[2] or name.removeprefix(f"{ROOT}/")
                line = f"{path}:{frame.f_lineno}"
                inner = inner or line
                ours = line if line.startswith("src/") else ""
            frame = frame.f_back  # type: ignore[assignment]
        return ours, inner

    # What torch says and does outside its operations

    def _replaced(self) -> list[tuple[Any, dict[str, Any]]]:
        """From modules and classes to what takes the place of their parts."""

        def nothing(*args: Any, **kwargs: Any) -> None: ...

        def always(value: Any) -> Callable[..., Any]:
            return lambda *args, **kwargs: value

        cuda = {
            "_lazy_init": nothing,
            "is_available": always(True),
            "is_initialized": always(True),
            "is_bf16_supported": always(True),
            "device_count": always(1),
            "current_device": always(0),
            "set_device": nothing,
            "get_device_name": always("a pretended GPU"),
            "get_device_capability": always((8, 0)),
            "synchronize": lambda *args: self.note("synchronize"),
            "empty_cache": nothing,
            "memory_stats": always({}),
            "max_memory_allocated": always(0),
            "reset_peak_memory_stats": nothing,
            "manual_seed": self.generator.manual_seed,
            "manual_seed_all": self.generator.manual_seed,
            "get_rng_state": lambda *args: self.generator.get_state(),
            "set_rng_state": lambda state, *args: self.generator.set_state(state),
            "get_rng_state_all": lambda: [self.generator.get_state()],
            "set_rng_state_all": lambda states: self.generator.set_state(states[0]),
        }
        made = {
            "tensor": self._made(torch.tensor),
            "as_tensor": self._made(torch.as_tensor),
            "Generator": _generators(self._generators),
        }
        tensor = {
            "new_tensor": lambda like, *args, **kwargs: torch.tensor(*args, **({"device": like.device} | kwargs)),
            "pin_memory": _pinned,
            "is_pinned": _is_pinned,
        }
        run = threading.Thread.run

        def run_with_gpu(thread: threading.Thread) -> None:
            with _Mode(self):
                run(thread)

        thread, amp = {"run": run_with_gpu}, {"amp_definitely_not_available": always(False)}
        return [
            (torch.cuda, cuda),
            (torch, made),
            (torch.Tensor, tensor),
            (torch.cuda.amp.common, amp),
            (threading.Thread, thread),
        ]

    def _made(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Make a tensor from values on the CPU, and then move it, which torch does out of a mode's sight."""

        def make(*args: Any, **kwargs: Any) -> Tensor:
            device = kwargs.get("device")
            device = torch.empty(0).device if device is None else torch.device(device)
            if device.type != "cuda" or isinstance(args[0], OnGPU):
                return function(*args, **kwargs)
            wants_gradient = kwargs.pop("requires_grad", False)
            return function(*args, **kwargs | {"device": "cpu"}).to(DEVICE).requires_grad_(wants_gradient)

        return make


class _Mode(TorchDispatchMode):
    """Hands a thread's operations to the GPU."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.gpu.compute(func, args, kwargs or {})


def _inner(part: Any) -> Any:
    return part.inner if isinstance(part, OnGPU) else part


def _pinned(tensor: Tensor, *args: Any) -> Tensor:
    copy: Any = tensor.clone()
    copy.is_pretended_pinned = True
    return copy


def _is_pinned(tensor: Tensor, *args: Any) -> bool:
    return getattr(tensor, "is_pretended_pinned", False)


@contextlib.contextmanager
def _accelerator() -> Iterator[None]:
    """Make torch's core, built without CUDA, take a device of this type for one that there is.

    Autograd asks for a guard that switches devices, which a registered one for Python backends does, and CUDA's hooks
    whether there is a device. The hooks' table of functions is exchanged for a copy with other answers.
    """
    cuda, private, functions = 1, 20, 96
    folder = Path(torch.__file__).parent / "lib"
    core, cpu = (ctypes.CDLL(str(folder / name)) for name in ("libc10.so", "libtorch_cpu.so"))
    guards = (ctypes.c_void_p * 32).in_dll(core, "_ZN3c104impl26device_guard_impl_registryE")
    find_hooks = cpu._ZN2at6detail12getCUDAHooksEv
    find_hooks.restype = ctypes.c_void_p
    hooks = ctypes.c_void_p.from_address(find_hooks())

    class Guard(torch._C._acc.DeviceGuard):
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.CUDA  # type: ignore[attr-defined]

    guard, before = Guard(), (guards[cuda], guards[private], hooks.value)
    answer = ctypes.CFUNCTYPE(ctypes.c_int8, ctypes.c_void_p)
    yes, zero = answer(lambda _hooks: 1), answer(lambda _hooks: 0)
    table = (ctypes.c_void_p * functions).from_buffer_copy((ctypes.c_void_p * functions).from_address(before[2]))
    for place in (2, 3, 4, 5, 6):  # isBuilt, isAvailable, hasPrimaryContext, init, deviceCount
        table[place] = ctypes.cast(yes, ctypes.c_void_p).value
    table[8] = ctypes.cast(zero, ctypes.c_void_p).value  # getCurrentDevice
    torch._C._acc.register_python_privateuseone_device_guard(guard)
    guards[cuda], guards[private] = guards[private], before[1]
    hooks.value = ctypes.addressof(table)
    try:
        yield
    finally:
        guards[cuda], hooks.value = before[0], before[2]
