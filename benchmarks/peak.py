"""Memory that a process holds, and the most that it has held (Linux). See proc_pid_status(5)."""

from __future__ import annotations

from pathlib import Path


def peak_mib() -> float:
    """The highest resident memory of this process so far, in MiB.

    `getrusage` would answer with the peak of the process that started this one where that is higher: the kernel keeps
    it across `exec`.
    """
    return _kib("VmHWM") / 1024


def resident_mib() -> float:
    """What this process has in memory, files that are mapped among it, in MiB."""
    return _kib("VmRSS") / 1024


def anonymous_mib() -> float:
    """What this process holds for itself, in MiB: without files that are mapped, whose pages others may share."""
    return _kib("RssAnon") / 1024


def _kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
