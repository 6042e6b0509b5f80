"""Peak memory is a process's own."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.peak import anonymous_mib, peak_mib

ROOT = Path(__file__).resolve().parents[2]


def child(before: str = "") -> float:
    """The peak that a process prints, after it has run some code."""
    code = f"from benchmarks.peak import anonymous_mib, peak_mib\n{before}\nprint(peak_mib())"
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


def test_a_file_that_is_mapped_is_not_the_processs_own(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(64 * 2**20))
    before = anonymous_mib()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) == 0
        assert anonymous_mib() - before < 16
        own = bytearray(mapped)
        assert anonymous_mib() - before > 48
        assert len(own) == file.stat().st_size
