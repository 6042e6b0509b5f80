"""Loading: how much memory of its own a process takes to load a model, with DDP and in shards.

The real command on processes of its own, of which each takes a GPU where that is the device: a T5 from scratch, its
files in float32 and in bfloat16, trained whole in float32. From before the model is loaded until the first step begins,
each process watches its anonymous memory: what it holds for itself, without the files that the system has mapped for
all of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from benchmarks.command import fit
from benchmarks.device import Device
from benchmarks.options import parse, report
from benchmarks.peak import anonymous_mib
from benchmarks.seq2seq import find_data, make_base
from benchmarks.shapes import add_shape, shape_of

STRATEGIES = {
    "ddp": {"trainer.strategy": "ddp"},
    "shards": {"trainer.strategy.class_path": "src.parallel.strategy.ShardedStrategy"},
}
OFTEN = 0.002  # seconds


class Watch(Callback):
    """Writes down the anonymous memory that a process takes before its first step.

    Args:
        directory: Where it goes, as one JSON a process: `most` and `left`, in MiB above what there was before.
    """

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self.before = self.most = 0.0
        self.over = threading.Event()
        self.watcher = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self.over.wait(OFTEN):
            self.most = max(self.most, anonymous_mib())

    def setup(self, *_: Any, **__: Any) -> None:
        self.before = self.most = anonymous_mib()
        self.watcher.start()

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.over.set()
        self.watcher.join()
        left = anonymous_mib()
        found = {"most": max(self.most, left) - self.before, "left": left - self.before}
        (self.directory / f"{trainer.global_rank}.json").write_text(json.dumps(found))


def run(device: Device, base: Path, directory: Path, strategy: str, processes: int) -> list[dict[str, float]]:
    """One run of the command, of one step.

    Returns:
        What `Watch` wrote, by process.
    """
    directory.mkdir()
    options: dict[str, Any] = {
        "model.init_args.model_name_or_path": base,
        "data.init_args.path": find_data(),
        "data.init_args.cache_dir": directory.parent / "cache",
        "data.init_args.batch_size": 2,
        "trainer.default_root_dir": directory / "run",
        "trainer.precision": "32-true",
        "trainer.devices": processes,
        "trainer.max_steps": 1,
        "trainer.limit_val_batches": 0,
        "trainer.num_sanity_val_steps": 0,
        "trainer.callbacks+": "benchmarks.loading.Watch",
        "trainer.callbacks.init_args.directory": directory,
        **STRATEGIES[strategy],
    }
    fit(device, options)
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(processes)]


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks loading", description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    add_shape(parser, hidden_size=768, layers=6, heads=4, vocab_size=4000)
    args = parse(parser, argv)
    args.device.require(args.processes)

    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        bases = {"float32": scratch / "float32", "bfloat16": scratch / "bfloat16"}
        count = make_base(find_data(), bases["float32"], shape_of(args))
        half = AutoModelForSeq2SeqLM.from_pretrained(bases["float32"], dtype=torch.bfloat16)
        half.save_pretrained(bases["bfloat16"])
        AutoTokenizer.from_pretrained(bases["float32"]).save_pretrained(bases["bfloat16"])
        del half
        for kind, base in bases.items():
            for strategy in STRATEGIES:
                for rank, found in enumerate(
                    run(args.device, base, scratch / f"{kind}-{strategy}", strategy, args.processes)
                ):
                    row = {"files": kind, "strategy": strategy, "process": rank}
                    rows.append(row | {"at most, MiB": found["most"], "at the first step, MiB": found["left"]})
    report(args, rows, title=f"{args.processes} processes, {4 * count / 2**20:.0f} MiB of float32 weights")
