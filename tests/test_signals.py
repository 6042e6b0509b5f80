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


def start(rank: str, first: int | None, seconds: float, **more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LOCAL_RANK": rank, **more}
    if first is not None:
        environment[FIRST_PROCESS] = str(first)
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


def test_a_process_that_torchrun_has_started_takes_signals_itself():
    """Whatever its number: else torchrun waits half a minute, and kills it."""
    started = start("1", None, 60, TORCHELASTIC_RUN_ID="a-run")
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    started.send_signal(signal.SIGTERM)
    assert started.communicate(timeout=50) == ("", "parley fit: stopped by SIGTERM.\n")
    assert started.returncode == 128 + signal.SIGTERM


def test_a_process_whose_torchrun_is_killed_ends():
    """The first of a machine too: else it trains on beside the one that a new torchrun starts."""
    words = [sys.executable, "-c", TAKES_THEM.format(seconds=60)]
    agent = f"import subprocess, time; subprocess.Popen({words!r}); time.sleep(60)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "a-run"}
    started = subprocess.Popen([sys.executable, "-c", agent], env=environment, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    begun = time.monotonic()
    started.kill()
    assert started.stdout.read() == ""  # the end of the file: nobody has it open any more
    assert time.monotonic() - begun < 50
