"""The load script counts what is lost, and what is written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("psutil", reason="psutil is not installed")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_moments_load(tiny_base: Callable[..., Path]) -> None:
    words = ["--clients", "4", "--seconds", "2", "--alone", "1", "--tokens", "8"]
    command = [sys.executable, "-m", "scripts.load_serve", str(tiny_base("gpt2")), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(done.stdout)
    assert [phase["clients"] for phase in found["phases"]] == [1, 4, 4]
    assert all(phase["lost"] == 0 and phase["requests"] > 0 for phase in found["phases"])
    assert found["ratio"] > 0


def test_what_is_no_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    import http.client

    from scripts.load_serve import ask

    connection = http.client.HTTPConnection("127.0.0.1", 9, timeout=2)  # nobody listens there
    assert ask(connection, "m", 1, 8) == -1
