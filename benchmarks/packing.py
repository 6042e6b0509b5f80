"""Packed rows beside padded batches: the same ChatbotData examples through the same small GPT-2, in one run.

    python -m benchmarks packing --examples 1500 --rounds 3

Every method takes the same number of examples for an optimiser step and sees the same examples, so only the way they
are laid out differs. A round times each method once; the figures are the medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.seq2seq import find_data
from src.commands.output import show
from src.contracts import Batch
from src.datamodules import ChatbotDataModule
from src.datamodules.encoding import pad
from src.models.corpus import read_corpus
from src.models.scratch import Sizes, make_base_model
from src.modules import CausalLMModule

LIMIT = 128
BATCH = 32


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks packing", description=__doc__)
    parser.add_argument("--examples", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        show(measure(Path(folder), args), title="ChatbotData, training, loss on all tokens", as_json=args.json)


def measure(folder: Path, args: argparse.Namespace) -> list[dict[str, object]]:
    source = find_data().parents[1] / "chatbot" / "ChatbotData.csv"
    sizes = Sizes(hidden_size=args.hidden_size, layers=args.layers, heads=4, vocab_size=8000)
    make_base_model("gpt2", read_corpus([source]), folder / "base", sizes)
    methods = batches_of(folder, source, args.examples)
    times: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(args.rounds + 1):
        for name, make in methods.items():
            seconds = train(folder / "base", make())
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
        by_row = max(1, round(BATCH * len(rows) / examples))  # as many examples a step as the others take
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


def train(base: Path, batches: list[Batch]) -> float:
    torch.manual_seed(0)
    module = CausalLMModule(str(base))
    module.configure_model()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    start = time.perf_counter()
    for batch in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss_sum, count = module.loss_sum(batch)
        (loss_sum / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start
