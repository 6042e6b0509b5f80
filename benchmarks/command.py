"""The real command, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.device import ROOT, Device
from benchmarks.seq2seq import RECIPE


def fit(device: Device, options: Mapping[str, Any], *words: str) -> None:
    """Run `parley fit` with the recipe for DialogSum.

    Args:
        device: What to run it on.
        options: By name, without dashes.
        *words: What comes after them.

    Raises:
        SystemExit: It failed; with the end of what it said.
    """
    given = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "src", "fit", "-c", str(RECIPE), "-c", str(device.recipe), *given, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"parley fit ended with status {done.returncode}: {done.stderr[-3000:]}")
