"""Signals while a process starts, before it can take them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.signals import FIRST_PROCESS, signals_held

ROOT = Path(__file__).resolve().parents[1]
TAKES_THEM = """
import sys, time
from src.signals import end_with_parent, interruption
with interruption("fit", at_once=True) as interrupted:
    end_with_parent()
    print("ready", flush=True)
    time.sleep({seconds})
"""


def start(rank: str, first: int, seconds: float) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LOCAL_RANK": rank, FIRST_PROCESS: str(first)}
    words = [sys.executable, "-c", TAKES_THEM.format(seconds=seconds)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_starts_is_not_killed_by_what_is_meant_for_the_first(number):
    with signals_held():
        started = start("1", os.getpid(), 0)
    started.send_signal(number)  # Python itself has not started yet
    assert started.communicate(timeout=60) == ("ready\n", "")
    assert started.returncode == 0
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())  # this one takes them again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_held_is_taken(number):
    with signals_held():
        started = start("0", os.getpid(), 60)
    started.send_signal(number)
    assert started.communicate(timeout=50) == ("", f"parley fit: stopped by {number.name}.\n")
    assert started.returncode == 128 + number


def test_a_command_within_another_is_stopped_in_the_others_name():
    script = TAKES_THEM.format(seconds=60).replace("with ", 'with interruption("demo", at_once=False), ', 1)
    started = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    started.send_signal(signal.SIGINT)
    assert started.communicate(timeout=50)[1] == "parley demo: stopped by SIGINT.\n"
    assert started.returncode == 128 + signal.SIGINT


def test_a_process_whose_first_has_ended_meanwhile_ends():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    begun = time.monotonic()
    assert start("1", gone.pid, 60).wait(timeout=50) == 1
    assert time.monotonic() - begun < 50
