"""Checkpoints: how long the writing of one stops training, in place and while training goes on.

The real command on processes of its own, of which each takes a GPU where that is the device, of one T5 from scratch
that is trained whole: a checkpoint as one file and as shards, each written in place and asynchronously. A stop is what
lies between the end of a step and the beginning of the next one, beyond the median of steps without a checkpoint. The
whole run's seconds stand beside it, for what is written while training goes on takes its share of the same cores and
disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from benchmarks.command import fit
from benchmarks.device import Device, device_named
from benchmarks.options import parse, report
from benchmarks.seq2seq import find_data, make_base
from benchmarks.shapes import FLAN_T5_BASE, add_shape, shape_of

STEPS_A_CHECKPOINT = 4
SHARDS = {
    "trainer.strategy.class_path": "src.parallel.strategy.ShardedStrategy",
    "trainer.strategy.init_args.checkpoints": "shards",
}


class Stops(Callback):
    """Writes down how long it is from the end of each step to the beginning of the next one, on rank 0.

    Args:
        file: Where they go, as JSON: seconds of `stops` by step, and of the whole run.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.stops: dict[int, float] = {}
        self.began: float | None = None
        self.ended: float | None = None

    def setup(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self.device = device_named(trainer.strategy.root_device.type)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        now = self.device.now()
        if self.began is None:
            self.began = now
        if self.ended is not None:
            self.stops[trainer.global_step] = now - self.ended

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        # Checkpoints' own hook comes after this one: Lightning puts callbacks that write checkpoints last.
        self.ended = self.device.now()

    def teardown(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        assert self.began is not None
        if trainer.is_global_zero:
            seconds = self.device.now() - self.began  # the last checkpoint has been waited for
            Path(self.file).write_text(json.dumps({"stops": self.stops, "seconds": seconds}))


def run(
    device: Device,
    base: Path,
    scratch: Path,
    name: str,
    *,
    processes: int,
    checkpoints: int,
    shards: bool,
    asynchronous: bool,
) -> dict[str, Any]:
    """One run of the command.

    Returns:
        What `Stops` wrote, and `megabytes` of a checkpoint.
    """
    file, directory = scratch / f"{name}.json", scratch / name
    options: dict[str, Any] = {
        "model.init_args.model_name_or_path": base,
        "data.init_args.path": find_data(),
        "data.init_args.cache_dir": scratch / "cache",
        "data.init_args.batch_size": 2,
        "trainer.default_root_dir": directory,
        "trainer.precision": "32-true",
        "trainer.devices": processes,
        "trainer.max_steps": STEPS_A_CHECKPOINT * checkpoints + STEPS_A_CHECKPOINT // 2,
        "trainer.limit_val_batches": 0,
        "trainer.num_sanity_val_steps": 0,
        **(SHARDS if shards else {"trainer.strategy": "auto" if processes == 1 else "ddp"}),
    }
    words = ["--trainer.callbacks+=benchmarks.checkpoints.Stops", f"--trainer.callbacks.init_args.file={file}"]
    words += ["--trainer.callbacks+=Checkpoints", f"--trainer.callbacks.init_args.every_n_steps={STEPS_A_CHECKPOINT}"]
    words += [f"--trainer.callbacks.init_args.asynchronous={str(asynchronous).lower()}"]
    fit(device, options, *words)
    newest = max(directory.glob("version_0/checkpoints/step=*.ckpt"))
    parts = newest.rglob("*") if newest.is_dir() else [newest]
    return json.loads(file.read_text()) | {"megabytes": sum(part.stat().st_size for part in parts) / 1e6}


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks checkpoints", description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--checkpoints", type=int, default=4, help="of each run, one every four steps")
    add_shape(parser, hidden_size=256, layers=4, heads=4, vocab_size=4000)
    args = parse(parser, argv, on_gpu={"processes": 1, **FLAN_T5_BASE})
    args.device.require(args.processes)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        base = scratch / "base"
        make_base(find_data(), base, shape_of(args))
        for shards in (False, True) if args.processes > 1 else (False,):
            for asynchronous in (False, True):
                kind, how = "shards" if shards else "one file", "asynchronous" if asynchronous else "in place"
                found = run(
                    args.device,
                    base,
                    scratch,
                    f"{kind}-{how}".replace(" ", "-"),
                    processes=args.processes,
                    checkpoints=args.checkpoints,
                    shards=shards,
                    asynchronous=asynchronous,
                )
                rows.append({"checkpoint": kind, "written": how, **_figures(found)})
    report(args, rows, title=f"Checkpoints, {args.processes} process{'es' * (args.processes > 1)}")


def _figures(found: dict[str, Any]) -> dict[str, float]:
    stops = {int(step): seconds for step, seconds in found["stops"].items()}
    usual = statistics.median(seconds for step, seconds in stops.items() if step % STEPS_A_CHECKPOINT)
    writing = [seconds - usual for step, seconds in stops.items() if step % STEPS_A_CHECKPOINT == 0]
    return {
        "MB": found["megabytes"],
        "stop s, median": statistics.median(writing),
        "stop s, longest": max(writing),
        "whole run s": found["seconds"],
    }
