"""Servers in processes of their own, which say where they are when they answer."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def announced(
    command: Sequence[str], environment: Mapping[str, str] | None = None, directory: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server until the block ends: its process, the address that it said, and all that it says."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=directory
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"http://[\w.]+:\d+\S*", line):
                break
        else:
            pytest.fail("".join(lines))
        threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True).start()
        yield process, found[0], lines
    finally:
        process.kill()
        process.wait()
