"""Memory: an iteration of PPO with LoRA beside a step of LoRA fine-tuning, at the same batch.

Same T5 from scratch, adapter, prompts, batch size and precision (bf16 autocast); the target of fine-tuning is as long
as the longest response. Each method runs in a process of its own, and what is reported is the highest resident memory
above what the process held before it loaded the model; on a GPU, the most that torch's allocator gave out there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from peft import LoraConfig

from benchmarks.device import MIB
from benchmarks.options import parse, report
from benchmarks.prompts import Prompts
from benchmarks.seq2seq import find_data, quieten
from benchmarks.shapes import FLAN_T5_BASE, add_shape, make_shaped, shape_of
from src.contracts import Example
from src.files import read_rows
from src.models.rollout import RolloutOptions
from src.modules import PPOModule, Seq2SeqModule
from src.rewards import LengthReward
from src.rl.config import PPOConfig

ON_GPU = {"batch_size": 64, "minibatch_size": 16, **FLAN_T5_BASE}
METHODS = ("LoRA fine-tuning", "PPO")


def run(method: str, base: Path, prompts: list[str], args: argparse.Namespace, results: Any) -> None:
    """Train on the prompts; report the peak above the start, in MiB."""
    quieten()
    device, tokens = args.device, args.tokens
    lora = LoraConfig(r=32, lora_alpha=32, target_modules=["q", "v"])
    module: LightningModule = Seq2SeqModule(str(base), lora=lora)
    if method == "PPO":
        lengths = RolloutOptions(min_new_tokens=tokens, output_min_length=tokens // 2, output_max_length=tokens)
        module = PPOModule(
            str(base), LengthReward(30), lora=lora, ppo=PPOConfig(minibatch_size=args.minibatch_size), rollout=lengths
        )
    data = Prompts(base, [Example(prompt, prompt, [prompt]) for prompt in prompts], args.batch_size, tokens)
    before = device.held_mib()
    Trainer(
        **device.trainer_options(), max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, data)  # fmt: skip
    results.put(device.peak_mib() - before)


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="of a target, and of the longest response")
    parser.add_argument("--minibatch-size", type=int, default=4, help="responses that PPO learns from at a time")
    add_shape(parser, hidden_size=512, layers=6, heads=8, vocab_size=8000, gated=True)
    args = parse(parser, argv, on_gpu=ON_GPU)
    dialogues = [str(row.cells["dialogue"]) for row in read_rows(find_data())][: args.batch_size * args.batches]
    prompts = [f"Summarize the following conversation.\n\n{text}\n\nSummary: " for text in dialogues]
    context, peaks = multiprocessing.get_context("spawn"), {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        weights = 4 * make_shaped("t5", dialogues, base, shape_of(args)) / MIB
        for method in METHODS:
            results = context.SimpleQueue()
            process = context.Process(target=run, args=(method, base, prompts, args, results))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{method} failed; its own message is above.")
            peaks[method] = results.get()
    rows = [
        {"method": name, "peak MiB": round(peak), "× LoRA fine-tuning": peak / peaks[METHODS[0]]}
        for name, peak in peaks.items()
    ]
    report(args, rows, title=f"batch {args.batch_size}, torch {torch.__version__}; weights {weights:.0f} MiB")
