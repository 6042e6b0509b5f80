"""What a benchmark runs on: its clock, its memory, and what Lightning and transformers are told of it."""

from __future__ import annotations

import platform
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.peak import peak_mib, resident_mib
from src.errors import ParleyError

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
NAMES = ("cpu", "cuda")

# Dense bfloat16 FLOP/s as NVIDIA's data sheets have them, by what torch calls the GPU. Slower variants of the same name
# (PCIe and NVL cards of the H series) and slices of a GPU (MIG) are not among them.
PEAK_FLOPS = {
    r"H[12]00(?!.*(PCIe|NVL|MIG))": 989e12,
    r"A100(?!.*MIG)": 312e12,
    r"L40S": 362e12,
}


class PassedOverError(Exception):
    """A benchmark has nothing to measure on this machine.

    Args:
        message: What it needs.
    """


@dataclass(frozen=True)
class Device:
    """A kind of device, with all that differs between them.

    Attributes:
        name: `cpu` or `cuda`, as torch says it.
    """

    name: str = "cpu"

    @property
    def on_gpu(self) -> bool:
        return self.name == "cuda"

    @property
    def torch(self) -> torch.device:
        """Where models and batches go."""
        return torch.device(self.name)

    @property
    def title(self) -> str:
        """The device's own name, such as `NVIDIA H200`."""
        return torch.cuda.get_device_name() if self.on_gpu else _processor()

    @property
    def slug(self) -> str:
        """The title as a file's name, such as `nvidia-h200`."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def now(self) -> float:
        """Seconds by the clock on the wall, once the device has nothing more to do."""
        self.synchronize()
        return time.perf_counter()

    def processor_now(self) -> float:
        """Seconds that this process has had of the processor, once the device has nothing more to do."""
        self.synchronize()
        return time.process_time()

    def held_mib(self) -> float:
        """What this process holds now, in MiB: resident memory, or what torch's allocator has given out on the GPU."""
        return torch.cuda.memory_allocated() / MIB if self.on_gpu else resident_mib()

    def peak_mib(self) -> float:
        """The most that this process has held so far, in MiB; on a GPU, since `forget_peak`."""
        return torch.cuda.max_memory_allocated() / MIB if self.on_gpu else peak_mib()

    def forget_peak(self) -> None:
        """Have the peak begin anew; a process's resident peak cannot, so that it is only told of whole processes."""
        if self.on_gpu:
            self.synchronize()  # which makes torch begin with the GPU, where it has not yet
            torch.cuda.reset_peak_memory_stats()

    def peak_of_stretch_mib(self) -> float | None:
        """The most held since `forget_peak`, in MiB; None on a CPU."""
        return self.peak_mib() if self.on_gpu else None

    @property
    def peak_flops(self) -> float | None:
        """The most bfloat16 operations a second that the GPU is made for; None where that is not known."""
        if not self.on_gpu:
            return None
        return next((peak for pattern, peak in PEAK_FLOPS.items() if re.search(pattern, self.title)), None)

    @property
    def recipe(self) -> Path:
        """The file of `configs/trainer` for one such device."""
        return ROOT / "configs" / "trainer" / ("gpu.yaml" if self.on_gpu else "cpu.yaml")

    def trainer_options(self, precision: str = "bf16-mixed") -> dict[str, Any]:
        """Lightning's options for one such device.

        Args:
            precision: As Lightning says it.
        """
        return {"accelerator": "gpu" if self.on_gpu else "cpu", "devices": 1, "precision": precision}

    def autocast(self, *, enabled: bool = True) -> torch.autocast:
        """bfloat16 autocast."""
        return torch.autocast(self.name, dtype=torch.bfloat16, enabled=enabled)

    @property
    def transformers_options(self) -> dict[str, Any]:
        """What `TrainingArguments` and its heirs, TRL's configurations among them, are told."""
        return {"use_cpu": not self.on_gpu}

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that must find this device and no other."""
        return {} if self.on_gpu else {"CUDA_VISIBLE_DEVICES": ""}

    def require(self, processes: int) -> None:
        """Ask for a GPU a process; processes on a CPU share it.

        Raises:
            PassedOverError: There are fewer.
        """
        if self.on_gpu and torch.cuda.device_count() < processes:
            raise PassedOverError(f"needs {processes} GPUs, and there is {torch.cuda.device_count()}")

    def require_host(self) -> None:
        """Refuse a GPU, for what is measured is the host's own.

        Raises:
            PassedOverError: It is one.
        """
        if self.on_gpu:
            raise PassedOverError("measures the memory of the host; it needs --device cpu")


CPU = Device()


def device_named(name: str) -> Device:
    """The device of a name.

    Raises:
        ParleyError: There is no such device, or none of the kind in this machine.
    """
    if name not in NAMES:
        raise ParleyError(f"there is no device {name!r}; choose one of: {', '.join(NAMES)}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ParleyError("torch sees no NVIDIA GPU here; leave --device cuda out, or see what `nvidia-smi` says.")
    return Device(name)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
