"""Peak memory is a process's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.peak import peak_mib

ROOT = Path(__file__).resolve().parents[2]


def child(before: str = "") -> float:
    """The peak that a process prints, after it has run some code."""
    code = f"from benchmarks.peak import peak_mib\n{before}\nprint(peak_mib())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, check=True
    )
    return float(done.stdout)


def test_memory_of_the_process_that_started_it_does_not_count() -> None:
    large = bytes(range(256)) * (4 * 300 * 1024)
    assert len(large) == 300 * 2**20
    assert peak_mib() > 300
    assert child() < 100


def test_memory_that_was_given_back_does() -> None:
    assert child("some = bytearray(200 * 2**20)\nsome[::4096] = b'x' * len(some[::4096])\ndel some") > 200
