"""What stands for the parts of torch that speak of a GPU outside operations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretended.tensors import DEVICE, OnGPU
from tests.pretended.waits import Waits, is_pinned, pinned


class _InstanceOfReal(type(torch._C.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, torch._C.Generator)


def generators(on_gpu: dict[int, Any]) -> type:
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


def replaced(
    waits: Waits, random: torch.Generator, on_gpu: dict[int, Any], mode: Callable[[], TorchDispatchMode]
) -> list[tuple[Any, dict[str, Any]]]:
    """From modules and classes to what takes the place of their parts.

    Args:
        waits: Where a `torch.cuda.synchronize` is noted.
        random: The GPU's random numbers.
        on_gpu: The GPU's generators, by the address that torch knows them by.
        mode: Hands a thread's operations to the GPU.
    """

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
        "synchronize": lambda *args: waits.note("synchronize"),
        "empty_cache": nothing,
        "memory_stats": always({}),
        "max_memory_allocated": always(0),
        "reset_peak_memory_stats": nothing,
        "manual_seed": random.manual_seed,
        "manual_seed_all": random.manual_seed,
        "get_rng_state": lambda *args: random.get_state(),
        "set_rng_state": lambda state, *args: random.set_state(state),
        "get_rng_state_all": lambda: [random.get_state()],
        "set_rng_state_all": lambda states: random.set_state(states[0]),
    }
    made = {
        "tensor": _made(torch.tensor),
        "as_tensor": _made(torch.as_tensor),
        "Generator": generators(on_gpu),
    }
    tensor = {
        "new_tensor": lambda like, *args, **kwargs: torch.tensor(*args, **({"device": like.device} | kwargs)),
        "pin_memory": pinned,
        "is_pinned": is_pinned,
    }
    run = threading.Thread.run

    def run_with_gpu(thread: threading.Thread) -> None:
        with mode():
            run(thread)

    thread, amp = {"run": run_with_gpu}, {"amp_definitely_not_available": always(False)}
    return [
        (torch.cuda, cuda),
        (torch, made),
        (torch.Tensor, tensor),
        (torch.cuda.amp.common, amp),
        (threading.Thread, thread),
    ]


def _made(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a tensor from values on the CPU, and then move it, which torch does out of a mode's sight."""

    def make(*args: Any, **kwargs: Any) -> Tensor:
        device = kwargs.get("device")
        device = torch.empty(0).device if device is None else torch.device(device)
        if device.type != "cuda" or isinstance(args[0], OnGPU):
            return function(*args, **kwargs)
        wants_gradient = kwargs.pop("requires_grad", False)
        return function(*args, **kwargs | {"device": "cpu"}).to(DEVICE).requires_grad_(wants_gradient)

    return make
