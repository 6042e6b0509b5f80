"""Every Module, whole and with LoRA, on one process, on several with DDP and on several in shards: the same losses?

The same steps three ways: one process that accumulates as many batches as there are processes otherwise, DDP, and
shards (FSDP2), all on the CPU, or on a GPU a process, in float32 with gradient clipping and weight decay, on the
bundled sample with bases made from scratch; DDP and shards on each number of processes that is asked for. For each: the
greatest difference of a step's loss, of a trained weight and of a validation figure from those of the one process;
bytes of parameters, gradients and optimiser state a process, counted on tensors, with their share of the one process's;
and seconds a step.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import CPU, ROOT, Device, device_named
from benchmarks.options import parse, report
from benchmarks.strategy_cases import CASES, Measured, Plan, make_bases

PATIENCE = 1800  # seconds


@dataclass(frozen=True)
class Way:
    """How a case is trained.

    Attributes:
        strategy: `one`, `ddp` or `sharded`.
        processes: How many.
    """

    strategy: str
    processes: int

    def __str__(self) -> str:
        return "1 process" if self == ALONE else f"{self.processes} {self.strategy}"


ALONE = Way("one", 1)


def measure(
    names: Sequence[str], processes: Sequence[int], directory: Path, *, steps: int = 20, device: Device = CPU
) -> dict[str, dict[Way, Measured]]:
    """Train each case on one process, and with DDP and in shards on several.

    Args:
        names: Of `CASES`.
        processes: Of DDP and of shards; each of 1, 2 and 4.
        directory: Where bases and results go.
        steps: Optimiser steps.
        device: What to train on.

    Returns:
        By case, and by `ALONE` and the other ways.
    """
    make_bases([CASES[name] for name in names], directory)
    found: dict[str, dict[Way, Measured]] = {name: {} for name in names}
    for world, strategies in ((1, ["one"]), *((number, ["ddp", "sharded"]) for number in processes)):
        plan = Plan(list(names), strategies, world, max(processes), str(directory), steps, device.name)
        for name, strategy, row in _run(plan, directory):
            found[name][Way(strategy, world)] = row
    return found


def _run(plan: Plan, directory: Path) -> list[tuple[str, str, Measured]]:
    """Run a plan on processes of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # A seed that somebody has left in the environment would be taken.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    inherited |= device_named(plan.device).environment
    inherited |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    inherited |= {"PYTHONPATH": str(ROOT), "WORLD_SIZE": str(plan.world), "NODE_RANK": "0"}
    words = [sys.executable, "-m", "benchmarks.strategy_cases", json.dumps(asdict(plan))]
    started = [
        subprocess.Popen(
            words, env=inherited | {"LOCAL_RANK": str(rank)}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in range(plan.world)
    ]
    try:
        said = [process.communicate(timeout=PATIENCE) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, said, strict=True):
        if process.returncode:
            raise SystemExit(f"a process ended with status {process.returncode}: {errors.decode()[-3000:]}")
    results = torch.load(directory / f"results-{plan.world}.pt", weights_only=True)
    return [(name, strategy, Measured(**row)) for name, strategy, row in results]


def difference(mine: dict[str, Any] | list[float], other: dict[str, Any] | list[float]) -> float:
    """The greatest difference between two lists, or between what two mappings hold under the same names.

    Of figures above 1, such as a perplexity, it is relative to them.
    """
    if isinstance(mine, dict) and isinstance(other, dict):
        assert mine.keys() == other.keys(), mine.keys() ^ other.keys()
        pairs = [(torch.as_tensor(mine[name]), torch.as_tensor(other[name])) for name in mine]
    else:
        assert len(mine) == len(other)
        pairs = [(torch.as_tensor(mine), torch.as_tensor(other))]
    found = [((a.double() - b.double()).abs() / b.double().abs().clamp(min=1)).max() for a, b in pairs if a.numel()]
    return max(map(float, found), default=0.0)


def share(one: Measured, alone: Measured) -> float:
    """What a process holds beside what one process alone holds: parameters, gradients and optimiser state together."""
    held = [row.parameter_bytes + row.gradient_bytes + row.optimizer_bytes for row in (one, alone)]
    return held[0] / held[1]


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks strategies", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--processes", type=_numbers, default=[2], help="1, 2 or 4, or several: 1,2,4")
    parser.add_argument("--steps", type=int, default=20)
    args = parse(parser, argv)
    args.device.require(max(args.processes))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.cases, args.processes, Path(folder), steps=args.steps, device=args.device)
    rows = []
    for name, ways in found.items():
        alone = ways[ALONE]
        for way, one in ways.items():
            rows.append(
                {
                    "case": name,
                    "on": str(way),
                    "Δ loss": f"{difference(one.losses, alone.losses):.1e}",
                    "Δ weight": f"{difference(one.weights, alone.weights):.1e}",
                    "Δ validation": f"{difference(one.validation, alone.validation):.1e}",
                    "parameters B": one.parameter_bytes,
                    "gradients B": one.gradient_bytes,
                    "optimiser B": one.optimizer_bytes,
                    "of one": f"{share(one, alone):.3f}",
                    "s/step": f"{one.seconds_a_step:.3f}",
                }
            )
    report(args, rows, title=f"{args.steps} steps, float32, torch {torch.__version__}")


def _numbers(text: str) -> list[int]:
    """Numbers of processes, as `1,2,4`; an iteration's prompts and responses can be dealt to these."""
    numbers = {int(part) for part in text.split(",")}
    if not numbers <= {1, 2, 4}:
        raise argparse.ArgumentTypeError("give 1, 2 or 4, or several of them with commas")
    return sorted(numbers)
