"""`scripts/slurm.sbatch` on two machines: what a user gives to sbatch, with srun played on this one."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli import main
from tests.forks import in_processes
from tests.small_fit import EVERY_N_STEPS, ROOT, newest, rows_of, same_to_the_bit, words_of

SCRIPT = ROOT / "scripts" / "slurm.sbatch"
STEPS = 24
# Starts each task with the variables that SLURM gives to it, and ends with the worst of their statuses.
SRUN = """
import os, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    del words[0]
nodes, tasks = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
started = []
for number in range(nodes * tasks):
    place = {"SLURM_PROCID": number, "SLURM_NODEID": number // tasks, "SLURM_LOCALID": number % tasks}
    started.append(subprocess.Popen(words, env=os.environ | {name: str(value) for name, value in place.items()}))
with open("tasks", "w") as stream:
    stream.write(" ".join(str(one.pid) for one in started))
sys.exit(max(one.wait() for one in started))
"""


def options() -> dict[str, str]:
    """What the script asks of SLURM."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE))


def test_the_script_asks_for_what_it_needs():
    asked = options()
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    assert asked["signal"] == "USR1@120"  # to the tasks; with B: in front the shell alone would have it
    assert asked["nodes"] == asked["ntasks-per-node"] == asked["gpus-per-node"] == "1"
    assert re.search(r"^#SBATCH --requeue$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Runs the script as the batch shell of a job does."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {
        "srun": f"#!{sys.executable}\n{SRUN}",
        "parley": f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m src "$@"\n',
        "scontrol": f'#!/bin/sh\necho "$@" >> {shlex.quote(str(tmp_path))}/asked\n',
    }.items():
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(words: list[str], *, nodes: int, tasks: int) -> subprocess.Popen[str]:
        variables = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MASTER_PORT": port,
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NAME": options()["job-name"],
            "SLURM_NODELIST": "127.0.0.[1-2]",
            "SLURM_CPUS_PER_TASK": options()["cpus-per-task"],
            "SLURM_NNODES": str(nodes),
            "SLURM_NTASKS": str(nodes * tasks),
            "SLURM_NTASKS_PER_NODE": str(tasks),
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), *words],
            cwd=tmp_path,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["-c", "configs/trainer/fsdp.yaml"]], ids=["ddp", "shards"])
def test_two_machines_are_requeued_and_go_on(job, tmp_path, tiny_base, more):
    """USR1 goes to all tasks at once; the job that comes back ends as one that was never stopped."""
    base, root = tiny_base("t5"), tmp_path / "runs" / "slurm-4711"
    words = [*more, *words_of(base, tmp_path / "cache", STEPS), "--trainer.accelerator", "cpu"]
    words += ["--trainer.precision", "32-true"]
    first = job(words, nodes=2, tasks=1)
    while not list(root.glob(f"version_0/checkpoints/step=*{EVERY_N_STEPS}.ckpt")):
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.01)
    for task in (tmp_path / "tasks").read_text().split():
        os.kill(int(task), signal.SIGUSR1)
    said = first.communicate(timeout=900)[0]
    assert first.returncode == 128 + signal.SIGUSR1, said
    assert said.count("parley fit: stopped by SIGUSR1 at step ") == 1
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    kept = newest(root)  # the rows of its own step are in it, and not yet in the log
    assert EVERY_N_STEPS <= int(kept.stem.removeprefix("step=")) < STEPS

    second = job(words, nodes=2, tasks=1)
    said = second.communicate(timeout=900)[0]
    assert second.returncode == 0, said
    assert str(kept.relative_to(tmp_path)) in said

    alone = job_alone(words, tmp_path / "alone")
    assert rows_of(root) == rows_of(alone)
    same_to_the_bit(newest(root), newest(alone))


def job_alone(words: list[str], root: Path) -> Path:
    """The same run on two processes of one machine."""
    given = ["fit", *words, "--trainer.devices", "2", "--trainer.default_root_dir", str(root)]
    if not any("fsdp" in word for word in words):
        given += ["--trainer.strategy", "ddp"]
    assert in_processes(2, main, given) == [0, 0]
    return root


@pytest.mark.slow
def test_one_machine_has_the_devices_of_its_tasks(job, tmp_path, tiny_base):
    """With what the script asks for by itself: one task."""
    words = [*words_of(tiny_base("t5"), tmp_path / "cache", 2), "--trainer.accelerator", "cpu"]
    run = job([*words, "--trainer.precision", "32-true"], nodes=1, tasks=1)
    said = run.communicate(timeout=900)[0]
    assert run.returncode == 0, said
    assert len(rows_of(tmp_path / "runs" / "slurm-4711")) == 2
