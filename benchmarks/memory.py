"""Memory: an iteration of PPO with LoRA beside a step of LoRA fine-tuning, at the same batch.

Same T5 from scratch, adapter, prompts, batch size and precision (bf16 autocast); the target of fine-tuning is as long
as the longest response. Each method runs in a process of its own, and what is reported is the highest resident memory
above what the process held before it loaded the model.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from peft import LoraConfig

from benchmarks.peak import peak_mib, resident_mib
from benchmarks.prompts import Prompts
from benchmarks.seq2seq import find_data, quieten
from src.commands.output import show
from src.contracts import Example
from src.files import read_rows
from src.models.rollout import RolloutOptions
from src.models.scratch import Sizes, make_base_model
from src.modules import PPOModule, Seq2SeqModule
from src.rewards import LengthReward
from src.rl.config import PPOConfig

MIB = 2**20
METHODS = ("LoRA fine-tuning", "PPO")


def run(
    method: str, base: Path, prompts: list[str], batch_size: int, tokens: int, results: multiprocessing.Queue
) -> None:
    """Train on the prompts; report the peak above the start, in MiB."""
    quieten()
    lora = LoraConfig(r=32, lora_alpha=32, target_modules=["q", "v"])
    module: LightningModule = Seq2SeqModule(str(base), lora=lora)
    if method == "PPO":
        lengths = RolloutOptions(min_new_tokens=tokens, output_min_length=tokens // 2, output_max_length=tokens)
        module = PPOModule(str(base), LengthReward(30), lora=lora, ppo=PPOConfig(minibatch_size=4), rollout=lengths)
    data = Prompts(base, [Example(prompt, prompt, [prompt]) for prompt in prompts], batch_size, tokens)
    before = resident_mib()
    Trainer(
        accelerator="cpu", devices=1, precision="bf16-mixed", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, data)  # fmt: skip
    results.put(peak_mib() - before)


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="of a target, and of the longest response")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6, help="on either side")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    dialogues = [str(row.cells["dialogue"]) for row in read_rows(find_data())][: args.batch_size * args.batches]
    prompts = [f"Summarize the following conversation.\n\n{text}\n\nSummary: " for text in dialogues]
    context, peaks = multiprocessing.get_context("spawn"), {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        sizes = Sizes(
            hidden_size=args.hidden_size, layers=args.layers, heads=8, vocab_size=args.vocab_size, untied_head=True
        )
        model, _ = make_base_model("t5", dialogues, base, sizes)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / MIB
        del model
        for method in METHODS:
            results = context.Queue()
            process = context.Process(target=run, args=(method, base, prompts, args.batch_size, args.tokens, results))
            process.start()
            peaks[method] = results.get(timeout=600)
            process.join()
    rows = [
        {"method": name, "peak MiB": round(peak), "× LoRA fine-tuning": peak / peaks[METHODS[0]]}
        for name, peak in peaks.items()
    ]
    show(
        rows,
        title=f"batch {args.batch_size}, torch {torch.__version__}; weights {weights:.0f} MiB",
        as_json=args.json,
    )
