"""DPO: pairs per second and peak memory, Parley's beside those of the installed TRL's `DPOTrainer`.

Same weights (a GPT-2 from scratch, trained whole or by LoRA), pairs, batch size, optimiser, reference and threads; the
pairs are the bundled dialogues with their own summary and another one's. Each run is a process of its own, which goes
through the pairs once; the methods take turns, each round in another order. Seconds of a step are medians over all but
the first three; pairs per second are over the same steps, since Parley's are grouped by length. Memory is the highest
resident one above what the process held before it loaded the model; on a GPU, the most that torch's allocator gave out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from benchmarks.beside_trl import adapter, add_options, clock
from benchmarks.options import parse, report
from benchmarks.prompts import SAMPLE
from benchmarks.seq2seq import quieten
from benchmarks.shapes import DECODER_OF_T5_BASE, make_shaped, shape_of
from benchmarks.turns import Turns
from src.datamodules import PreferenceDataModule
from src.files import read_rows
from src.models.corpus import read_corpus
from src.modules import DPOModule
from src.rl.preferences import DPOConfig

LEARNING_RATE = 1e-5
WARM_UP = 3  # steps that are not counted
METHODS = ("Parley", "TRL")
ON_GPU = {"batch_size": 32, **DECODER_OF_T5_BASE}


def write_pairs(file: Path, count: int) -> None:
    """A dialogue's own summary, and the next one's."""
    cells = [row.cells for row in read_rows(SAMPLE / "train.jsonl")][: count + 1]
    with file.open("w", encoding="utf-8") as stream:
        for row, other in pairwise(cells):
            prompt = f"Summarize.\n\n{row['dialogue']}\n\nSummary: "
            stream.write(json.dumps({"prompt": prompt, "chosen": row["summary"], "rejected": other["summary"]}) + "\n")


def ours(folder: Path, args: argparse.Namespace, *, bf16: bool, lora: bool) -> list[float]:
    """Seconds of each step of Parley's."""
    seconds: list[float] = []
    now = clock(args)

    class Clock(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.since = now()

        def on_train_batch_end(self, *_: Any) -> None:
            seconds.append(now() - self.since)

    module = DPOModule(
        str(folder / "base"),
        DPOConfig(),
        lora=adapter() if lora else None,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0),
    )
    data = PreferenceDataModule(
        str(folder / "base"), path=str(folder / "pairs.jsonl"), train_split="train", validation_split="train[:1]",
        batch_size=args.batch_size, format="plain", max_source_length=args.max_length,
        max_target_length=args.max_length, cache_dir=str(folder / "cache"), template="{prompt}",
    )  # fmt: skip
    Trainer(
        **args.device.trainer_options("bf16-mixed" if bf16 else "32-true"), max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        gradient_clip_val=1.0, callbacks=[Clock()],
    ).fit(module, data)  # fmt: skip
    return seconds


def theirs(folder: Path, args: argparse.Namespace, *, bf16: bool, lora: bool) -> list[float]:
    """Seconds of each step of TRL's."""
    import datasets
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig as PeerConfig
    from trl import DPOTrainer

    seconds, since, now = [], [0.0], clock(args)
    datasets.disable_progress_bars()

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            since[0] = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(now() - since[0])

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    DPOTrainer(
        str(folder / "base"),
        args=PeerConfig(
            output_dir=str(folder / "trl"),
            **args.device.transformers_options,
            bf16=bf16,
            model_init_kwargs={"dtype": "float32"},
            gradient_checkpointing=False,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            per_device_train_batch_size=args.batch_size,
            max_length=2 * args.max_length,
            num_train_epochs=1,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter() if lora else None,
        callbacks=[Clock()],
    ).train()
    return seconds


def measure(method: str, folder: Path, args: argparse.Namespace, bf16: bool, lora: bool, results: Any) -> None:
    """Train once; report the steps' seconds and the peak above the start, in MiB."""
    quieten()
    torch.manual_seed(0)
    before = args.device.held_mib()
    seconds = (ours if method == "Parley" else theirs)(folder, args, bf16=bf16, lora=lora)
    results.put((seconds, args.device.peak_mib() - before))


def apart(method: str, folder: Path, args: argparse.Namespace, bf16: bool) -> tuple[list[float], float]:
    """`measure` in a process of its own.

    Raises:
        RuntimeError: It failed.
    """
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    process = spawn.Process(target=measure, args=(method, folder, args, bf16, args.lora, results))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("it failed; its own message is above")
    found: tuple[list[float], float] = results.get()
    return found


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks dpo", description=__doc__)
    parser.add_argument("--steps", type=int, default=16, help="timed steps of each method in a round")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs a step")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a prompt, and of an answer, at most")
    parser.add_argument("--lora", action="store_true", help="train an adapter instead of the whole model")
    add_options(parser)
    args = parse(parser, argv, on_gpu=ON_GPU)
    quieten()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shaped("gpt2", read_corpus([SAMPLE]), folder / "base", shape_of(args))
        write_pairs(folder / "pairs.jsonl", (args.steps + WARM_UP) * args.batch_size)
        kinds = {"float32": False} if args.float32 else {"float32": False, "bf16": True}
        methods = {
            f"{method}, {kind}": partial(apart, method, folder, args, bf16)
            for kind, bf16 in kinds.items()
            for method in METHODS
        }
        turns = Turns(methods, lambda name: name.startswith("TRL"))
        played = turns.play(args.rounds)
    rates = {
        name: args.batch_size / statistics.mean(step for found in played for step in found[name][0][WARM_UP:])
        for name in turns.methods
    }
    rows = [
        {
            "method": name,
            "step s": statistics.median(step for found in played for step in found[name][0][WARM_UP:]),
            "pairs/s": rate,
            "times TRL": rate / rates[peer] if (peer := f"TRL, {name.split(', ')[1]}") in rates else None,
            "peak MiB": statistics.median(found[name][1] for found in played),
        }
        for name, rate in rates.items()
    ]
    trained = "LoRA" if args.lora else "the whole model"
    report(args, rows, title=f"DPO of {trained}, {args.batch_size} pairs a step", left_out=turns.left_out)
