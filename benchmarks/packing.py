"""Packed rows beside padded batches: the same ChatbotData examples through the same small GPT-2, in one run.

    python -m benchmarks packing --examples 1500 --rounds 3

Every method takes the same number of examples for an optimiser step and sees the same examples, so only the way they
are laid out differs. A round times each method once; the figures are the medians over the rounds.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from lightning.fabric.utilities import move_data_to_device

from benchmarks.device import Device
from benchmarks.options import parse, report
from benchmarks.prompts import SAMPLE
from benchmarks.seq2seq import find_data
from benchmarks.shapes import DECODER_OF_T5_BASE, add_shape, make_shaped, shape_of
from src.contracts import Batch
from src.datamodules import ChatbotDataModule
from src.datamodules.encoding import pad
from src.files import read_rows
from src.models.corpus import read_corpus
from src.modules import CausalLMModule

LIMIT = 128
BATCH = 32


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks packing", description=__doc__)
    parser.add_argument("--examples", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    add_shape(parser, hidden_size=256, layers=4, heads=4, vocab_size=8000)
    args = parse(parser, argv, on_gpu=DECODER_OF_T5_BASE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = find_data().parents[1] / "chatbot" / "ChatbotData.csv"
        if not source.is_file():
            source = write_turns(folder / "turns.csv")
        rows = measure(folder, source, args)
    report(args, rows, title=f"{source.stem}, training, loss on all tokens")


def write_turns(file: Path) -> Path:
    """Turns of the bundled dialogues with their answers, as ChatbotData has them, for where that is not to be had."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("Q", "A", "label"))
        for row in read_rows(SAMPLE / "train.jsonl"):
            turns = [turn.partition(": ")[2] for turn in str(row.cells["dialogue"]).splitlines()]
            table.writerows((question, answer, 0) for question, answer in pairwise(turns))
    return file


def measure(folder: Path, source: Path, args: argparse.Namespace) -> list[dict[str, object]]:
    make_shaped("gpt2", read_corpus([source]), folder / "base", shape_of(args))
    methods = batches_of(folder, source, args.examples)
    times: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(args.rounds + 1):
        for name, make in methods.items():
            seconds = train(folder / "base", make(), args.device)
            if number:  # the first round warms up
                times[name].append(seconds)
    rows = []
    for name, make in methods.items():
        batches, seconds = make(), statistics.median(times[name])
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        positions = sum(batch["input_ids"].numel() for batch in batches)
        rows.append(
            {
                "layout": name,
                "steps": len(batches),
                "examples/s": round(sum(len(batch["id"]) for batch in batches) / seconds),
                "real tokens/s": round(tokens / seconds),
                "padding": f"{1 - tokens / positions:.0%}",
                "times as fast": statistics.median(times["padded to 128"]) / seconds,
            }
        )
    return rows


def batches_of(folder: Path, source: Path, examples: int) -> dict[str, Callable[[], list[Batch]]]:
    def loaded(**settings: object) -> list[Batch]:
        data = ChatbotDataModule(
            str(folder / "base"),
            path=str(source),
            train_split=f"train[:{examples}]",
            loss_on="all",
            cache_dir=str(folder / "cache"),
            **settings,
        )
        data.setup("fit")
        return list(data.train_dataloader())

    def packed() -> list[Batch]:
        rows = loaded(packing=True, batch_size=1)
        held = sum(len(batch["id"]) for batch in rows)  # more than questions, where one has several answers
        by_row = max(1, round(BATCH * len(rows) / held))  # as many examples a step as the others take
        return loaded(packing=True, batch_size=by_row)

    def widened() -> list[Batch]:
        return [_widen(batch) for batch in loaded(batch_size=BATCH, group_by_length=False)]

    return {
        "padded to 128": widened,
        "padded to the longest": lambda: loaded(batch_size=BATCH, group_by_length=False),
        "grouped by length": lambda: loaded(batch_size=BATCH),
        "packed": packed,
    }


def _widen(batch: Batch) -> Batch:
    fills = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {**batch, **{key: pad([*batch[key].tolist(), [fill] * LIMIT], fill)[0][:-1] for key, fill in fills.items()}}  # type: ignore[typeddict-item, literal-required]


def train(base: Path, batches: list[Batch], device: Device) -> float:
    torch.manual_seed(0)
    module = CausalLMModule(str(base))
    module.configure_model()
    module.to(device.torch)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    start = device.now()
    for batch in batches:
        with device.autocast():
            loss_sum, count = module.loss_sum(move_data_to_device(batch, device.torch))
        (loss_sum / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return device.now() - start
