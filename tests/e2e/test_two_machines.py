"""Two machines joined by a cable, as two network namespaces are: torchrun, and one of them is lost.

What is not apart is the disk, which all machines of a run share.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from src.cli import main
from tests.forks import in_processes
from tests.small_fit import EVERY_N_STEPS, ROOT, newest, rows_of, same_to_the_bit, words_of

STEPS = 30
PATIENCE = 240  # seconds
PORT = "29400"


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Machine:
    """A network namespace with one device, and what runs in it."""

    name: str
    device: str
    address: str
    is_host: bool
    log: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def torchrun(self, words: list[str], *, host: str, restarts: int = 3) -> subprocess.Popen[bytes]:
        """Start one process of two."""
        given = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host}:{PORT}", "--rdzv-id", "a-run"),
            *("--rdzv-conf", f"is_host={int(self.is_host)}", "--local-addr", self.address),
            *("--max-restarts", str(restarts), "--monitor-interval", "0.5", "--shutdown-timeout", "60", "-m", "src"),
            *(*words, "--trainer.num_nodes", "2", "--trainer.devices", "1"),
        ]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": self.device, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as docs/scaling.md says
        with self.log.open("ab") as stream:
            one = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *given],
                cwd=ROOT,
                env=environment,
                stdout=stream,
                stderr=stream,
            )
        self.started.append(one)
        return one

    def processes(self) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.name).split()]

    def lose(self) -> None:
        """At one blow, and without a word to the other machine: the cable first."""
        ip("-n", self.name, "link", "set", self.device, "down")
        self.kill()

    def kill(self) -> None:
        while pids := self.processes():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        for one in self.started:
            one.wait()

    def connect(self) -> None:
        ip("-n", self.name, "link", "set", self.device, "up")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two, joined; skipped where they cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("two machines are played by network namespaces, and there is no `ip` (iproute2)")
    both = tuple(
        Machine(
            f"parley-{os.getpid()}-{end}", f"py{os.getpid()}{end}", f"10.213.71.{place}", place == 1, tmp_path / end
        )
        for place, end in enumerate("ab", start=1)
    )
    try:
        try:
            for each in both:
                ip("netns", "add", each.name)
            first, second = both
            peer = ("peer", "name", second.device, "netns", second.name)
            ip("link", "add", first.device, "netns", first.name, "type", "veth", *peer)
        except OSError as error:
            pytest.skip(f"two machines are played by network namespaces, which this process may not make ({error})")
        for each in both:
            ip("-n", each.name, "addr", "add", f"{each.address}/24", "dev", each.device)
            ip("-n", each.name, "link", "set", "lo", "up")
            each.connect()
        yield first, second
    finally:
        for each in both:
            try:
                each.kill()
                ip("netns", "delete", each.name)
            except OSError:
                continue


@pytest.fixture(scope="module")
def words_for(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    """From where a run writes to its command line."""
    cache = tmp_path_factory.mktemp("cache")

    def make(root: Path) -> list[str]:
        words = ["fit", *words_of(tiny_base("t5"), cache, STEPS), "--trainer.strategy", "ddp"]
        return [*words, "--trainer.default_root_dir", str(root), "--ckpt_path", "last"]

    return make


@pytest.fixture(scope="module")
def left_in_peace(
    words_for: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Path]:
    """Where the same run on two processes of one machine is, which nobody disturbed."""
    root = tmp_path_factory.mktemp("alone")

    def find() -> Path:
        if not list(root.iterdir()):
            assert in_processes(2, main, [*words_for(root), "--trainer.devices", "2"]) == [0, 0]
        return root

    return find


def await_steps(root: Path, steps: int, running: list[subprocess.Popen[bytes]]) -> None:
    """Until a checkpoint of so many steps is there."""
    deadline = time.monotonic() + PATIENCE
    while not list(root.glob(f"version_*/checkpoints/step={steps:07d}.ckpt")):
        assert all(one.poll() is None for one in running), "a machine has ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["lost", "lost with the list of who takes part", "told to stop"])
def test_a_run_on_two_machines_of_which_one_ends_and_comes_back(machines, words_for, left_in_peace, tmp_path, fate):
    """Its log, weights and moments are those of the run that was left in peace, to the bit."""
    first, second = machines
    root = tmp_path / "two"
    words = words_for(root)
    running = [each.torchrun(words, host=first.address) for each in machines]
    await_steps(root, 2 * EVERY_N_STEPS, running)
    again = [second]
    if fate == "lost":
        second.lose()
        second.connect()
    elif fate == "told to stop":
        running[1].terminate()
        assert running[1].wait(timeout=PATIENCE) != 0
    else:  # the other one's torchrun cannot go on without it
        first.lose()
        first.connect()
        assert all(one.wait(timeout=PATIENCE) != 0 for one in running)
        again = [first, second]
    for each in again:
        running[machines.index(each)] = each.torchrun(words, host=first.address)
    for one, each in zip(running, machines, strict=True):
        assert one.wait(timeout=PATIENCE) == 0, each.log.read_text(encoding="utf-8")[-3000:]
    assert rows_of(root) == rows_of(left_in_peace())
    same_to_the_bit(newest(root), newest(left_in_peace()))
    said = "".join(each.log.read_text(encoding="utf-8") for each in machines)
    assert said.count("stopped by SIGTERM at step") == (fate == "told to stop")
