"""LoRA on a decoder-only model: examples per second of `parley fit` and of a plain training loop.

Same model, format, dialogues, batch size, adapter, precision (bf16 autocast) and process. The plain loop is what
one writes first: the model's own loss with the prompt's labels at -100, batches padded to their longest. The methods
take turns, each round in another order; the ratio is the median over rounds. Start-up is outside the clock.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.seq2seq import CPU, ROOT, Clock, FitClock, find_data, quieten

RECIPE = ROOT / "configs/dialogsum_causal_lora.yaml"
SMOLLM2 = ROOT / ".assets/smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def parley(base: Path, gguf_file: str | None, data: Path, examples: int, scratch: Path) -> Clock:
    """`parley fit` with the recipe on a CPU, as the command line would start it."""
    from src.commands import trainer

    options: dict[str, Any] = {
        "model.init_args.model_name_or_path": base,
        "model.init_args.gguf_file": gguf_file or "null",
        "data.init_args.path": data,
        "data.init_args.format": "auto",  # the chat template where the model has one
        "data.init_args.train_split": f"train[:{examples}]",
        "data.init_args.validation_split": "validation[:8]",
        "data.init_args.cache_dir": scratch / "cache",
        "trainer.max_epochs": 1,
        "trainer.default_root_dir": scratch / "runs",
        "trainer.limit_val_batches": 0,
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "trainer.callbacks+": "benchmarks.seq2seq.FitClock",
    }
    FitClock.examples = 0
    trainer.run("fit", ["-c", str(RECIPE), "-c", str(CPU), *(f"--{name}={value}" for name, value in options.items())])
    if FitClock.examples != examples:
        raise RuntimeError(f"{FitClock.examples} of {examples} examples were trained on; nothing can be said of speed.")
    return FitClock.latest


def plain_loop(base: Path, gguf_file: str | None, data: Path, examples: int, scratch: Path) -> Clock:
    """Model, adapter, AdamW, and a loop over padded batches."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = encoded(base, gguf_file, data, examples, scratch)
    named = {"gguf_file": gguf_file} if gguf_file else {}
    tokenizer = AutoTokenizer.from_pretrained(base, **named)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    torch.manual_seed(42)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **named)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    order, clock = torch.randperm(len(rows)).tolist(), Clock()
    clock.start()
    for start in range(0, len(rows), 8):
        chosen = [rows[index] for index in order[start : start + 8]]
        width = max(len(row["input_ids"]) for row in chosen)
        fills = {"input_ids": pad, "attention_mask": 0, "labels": -100}
        batch = {
            name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in chosen])
            for name, fill in fills.items()
        }
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.lap()
    return clock


def encoded(base: Path, gguf_file: str | None, data: Path, examples: int, scratch: Path) -> list[dict[str, list[int]]]:
    """The examples' token ids: what Parley trains on, for the plain loop to train on too."""
    from src.datamodules import DialogSumDataModule

    module = DialogSumDataModule(
        str(base),
        str(data),
        train_split=f"train[:{examples}]",
        template="summarize",
        format="auto",
        max_source_length=1024,
        cache_dir=str(scratch / "cache"),
        gguf_file=gguf_file,
    )
    return [
        {
            "input_ids": row["prompt_ids"] + row["target_ids"],
            "attention_mask": [1] * (len(row["prompt_ids"]) + len(row["target_ids"])),
            "labels": [-100] * len(row["prompt_ids"]) + row["target_ids"],
        }
        for row in module._encoded("train").rows
    ]


METHODS = {"a plain loop": plain_loop, "parley fit": parley}


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks causal", description=__doc__)
    parser.add_argument("--model", help="a model directory; SmolLM2 (`make smollm2`) or else a Llama from scratch")
    parser.add_argument("--examples", type=int, default=32, help="dialogues to train on, in batches of 8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    args = parser.parse_args(argv)
    quieten()

    from src.commands.output import show
    from src.files import read_rows
    from src.models.scratch import Sizes, make_base_model

    with tempfile.TemporaryDirectory() as folder:
        scratch, data = Path(folder), find_data()
        base, gguf_file = Path(args.model or SMOLLM2), None
        if args.model is None and (base / GGUF).is_file():
            gguf_file = GGUF
        elif args.model is None:
            base = scratch / "base"
            corpus = [row.cells[column] for row in read_rows(data) for column in ("dialogue", "summary")]
            make_base_model("llama", corpus, base, Sizes(hidden_size=64, layers=2, heads=2, vocab_size=2000))
        setting = (base, gguf_file, data, args.examples, scratch)
        for method in METHODS.values():
            method(base, gguf_file, data, min(8, args.examples), scratch)
        timed, names = [], list(METHODS)
        for number in range(args.rounds):
            order = names[number % 2 :] + names[: number % 2]
            timed.append({name: METHODS[name](*setting) for name in order})
        rows = [
            {
                "method": name,
                "examples/s": statistics.median(args.examples / clocks[name].wall for clocks in timed),
                "× a plain loop": statistics.median(clocks[names[0]].wall / clocks[name].wall for clocks in timed),
            }
            for name in names
        ]
    show(rows, title=f"LoRA on {base.name}, {args.examples} dialogues", as_json=args.json)
