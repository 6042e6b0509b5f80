"""Resuming: seconds from the command to its first finished step, of a resumed run and of a fresh one.

Both are the real command in a process of its own, on the same model and data, whose cache is warm. The resumed one goes
on in the middle of an epoch. They take turns; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from benchmarks.command import fit
from benchmarks.device import Device, device_named
from benchmarks.options import parse, report
from benchmarks.seq2seq import find_data, make_base
from benchmarks.shapes import FLAN_T5_BASE, add_shape, shape_of


class EndAfter(Callback):
    """Ends the process after some steps, as a kill would, and leaves the time in a file.

    Args:
        steps: Steps of this process.
        file: Where the time goes, in seconds since the epoch.
    """

    def __init__(self, steps: int, file: str) -> None:
        self.steps, self.file, self.done = steps, file, 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self.done += 1
        if self.done == self.steps:
            device_named(trainer.strategy.root_device.type).synchronize()
            Path(self.file).write_text(str(time.time()))
            os._exit(0)


def seconds(device: Device, base: Path, data: Path, scratch: Path, run: Path, steps: int, *words: str) -> float:
    """From the start of a command to the end of its so-manieth step."""
    file = scratch / "time"
    options = {
        "model.init_args.model_name_or_path": base,
        "data.init_args.path": data,
        "data.init_args.train_split": "train[:100]",
        "data.init_args.validation_split": "validation[:8]",
        "data.init_args.cache_dir": scratch / "cache",
        "trainer.default_root_dir": run,
        "trainer.num_sanity_val_steps": 0,
        "trainer.callbacks+": "benchmarks.resume.EndAfter",
        "trainer.callbacks.init_args.steps": steps,
        "trainer.callbacks.init_args.file": file,
    }
    start = time.time()
    fit(device, options, *words)
    return float(file.read_text()) - start


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks resume", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    add_shape(parser, hidden_size=256, layers=4, heads=4, vocab_size=4000)
    args = parse(parser, argv, on_gpu={"rounds": 3, **FLAN_T5_BASE})

    times: dict[str, list[float]] = {"fresh": [], "resumed": []}
    with tempfile.TemporaryDirectory() as folder:
        scratch, data = Path(folder), find_data()
        base = scratch / "base"
        make_base(data, base, shape_of(args))
        callback = ["--trainer.callbacks+=Checkpoints", "--trainer.callbacks.init_args.every_n_steps=3"]
        seconds(args.device, base, data, scratch, scratch / "killed", 5, *callback)
        for number in range(args.rounds):
            for name in ("fresh", "resumed") if number % 2 else ("resumed", "fresh"):
                run = scratch / f"{name}-{number}"
                if name == "resumed":
                    shutil.copytree(scratch / "killed", run, symlinks=True)
                times[name].append(seconds(args.device, base, data, scratch, run, 1, "--ckpt_path", "last"))
    fresh = statistics.median(times["fresh"])
    rows = [
        {"run": name, "seconds to the first step": statistics.median(each), "× fresh": statistics.median(each) / fresh}
        for name, each in times.items()
    ]
    report(args, rows, title="From the command to its first finished step")
