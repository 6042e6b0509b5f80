"""Peak memory of a run on data that stays on the disk, beside one on a hundredth of it, and on data in memory.

    python -m benchmarks streaming --rows 10000 1000000 --in-memory 10000

Each run is a process of its own and the real command: it makes a T5 of 1 layer learn every row of a JSONL file once, of
some 150 bytes each. The peak is the most that the process had in memory at any time, libraries and model among it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.options import parse, report
from src.models.scratch import Sizes, make_base_model

TEXT = "the train leaves at nine so please call me when you know how long it will take to mend the red car"
RUN = """
import sys
from benchmarks.peak import peak_mib
from src.cli import main
status = main(sys.argv[1:])
print(peak_mib())
sys.exit(status)
"""


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks streaming", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000, 20_000], help="of runs that stream")
    parser.add_argument("--in-memory", type=int, nargs="*", default=[2_000], help="rows of runs that do not")
    parser.add_argument("--steps", type=int, default=-1, help="of each run at most; every row once when left out")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0)
    args = parse(parser, argv)
    args.device.require_host()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), args)
    report(args, rows, title="Peak memory of a run")


def measure(folder: Path, args: argparse.Namespace) -> list[dict[str, object]]:
    corpus = [text for row in rows_of(300) for text in row.values()]
    make_base_model(
        "t5", corpus, folder / "base", Sizes(hidden_size=8, layers=1, heads=1, feed_forward_size=16, vocab_size=400)
    )
    runs = [(count, True) for count in args.rows] + [(count, False) for count in args.in_memory]
    return [run(folder, args, count, streaming=streaming) for count, streaming in runs]


def rows_of(count: int) -> Iterator[dict[str, str]]:
    """Rows that all differ, the same ones every time."""
    chance, words = random.Random(0), TEXT.split()
    for number in range(count):
        turns = [
            f"Person{1 + turn % 2}: {' '.join(chance.choices(words, k=4))}." for turn in range(chance.randint(2, 4))
        ]
        yield {"fname": f"row{number}", "dialogue": "\n".join(turns), "summary": f"They speak of {number}."}


def run(folder: Path, args: argparse.Namespace, count: int, *, streaming: bool) -> dict[str, object]:
    """One run, of which nothing is left."""
    file = folder / "rows.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows_of(count))
    words = [
        *("fit", "--model", "Seq2SeqModule", "--model.init_args.model_name_or_path", str(folder / "base")),
        *("--data", "DialogSumDataModule", "--data.init_args.path", str(file)),
        *("--data.init_args.validation_split", "train[:20]", "--data.init_args.cache_dir", str(folder / "cache")),
        *("--data.init_args.streaming", str(streaming).lower(), "--data.init_args.batch_size", str(args.batch_size)),
        *("--data.init_args.num_workers", str(args.workers), "--trainer.max_epochs", "1"),
        *("--trainer.max_steps", str(args.steps), "--trainer.accelerator", "cpu", "--trainer.devices", "1"),
        *("--trainer.default_root_dir", str(folder / f"run{count}{streaming}"), "--trainer.num_sanity_val_steps", "0"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    ]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return {
        "rows": count,
        "streaming": "yes" if streaming else "no",
        "file MB": round(file.stat().st_size / 1e6, 1),
        "peak MiB": round(float(done.stdout.split()[-1])),
        "seconds": round(time.perf_counter() - began),
    }
