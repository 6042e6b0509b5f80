"""The most memory that a process has held."""

from __future__ import annotations

from pathlib import Path


def peak_mib() -> float:
    """The highest resident memory of this process so far, in MiB (Linux).

    `getrusage` would answer with the peak of the process that started this one where that is higher: the kernel keeps
    it across `exec`. See `VmHWM` in proc_pid_status(5).
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
