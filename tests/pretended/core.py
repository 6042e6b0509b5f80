"""Makes torch's core, built without CUDA, believe in a device of this type; it knows the inside of torch 2.13."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


@contextlib.contextmanager
def accelerator() -> Iterator[None]:
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
