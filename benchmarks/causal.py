"""LoRA on a decoder-only model: examples per second of `parley fit`, of a plain training loop and of TRL's SFTTrainer.

Same model, format, dialogues, adapter, precision (bf16 autocast over float32 weights) and process. The plain loop is
what one writes first: the model's own loss with the prompt's labels at -100, batches padded to their longest. The
packed methods take as many rows a step as they are told, of as many tokens at most: TRL's as it packs by default, which
keeps examples apart, and `wrapped`, which does not; with Liger's kernels where those are installed. The methods take
turns, each round in another order; the ratio is the median over rounds. Start-up is outside the clock, and each method
trains on a few examples first.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.clocks import Clock, FitClock, timer_of
from benchmarks.device import ROOT, Device
from benchmarks.options import parse, report
from benchmarks.seq2seq import find_data, is_peer, quieten
from benchmarks.shapes import LLAMA_1B, add_shape, make_shaped, shape_of
from benchmarks.turns import Turns

RECIPE = ROOT / "configs/dialogsum_causal_lora.yaml"
SMOLLM2 = ROOT / ".assets/smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ON_GPU = {
    "from_scratch": True,
    "examples": 480,
    "rounds": 1,
    "pack_length": 2048,
    "packed_rows": 4,
    "methods": ["parley fit, packed", "TRL, packed", "TRL, packed, Liger"],
    **LLAMA_1B,
}


@dataclass(frozen=True)
class Setting:
    """What is the same for every method.

    Attributes:
        base: The model's directory.
        gguf_file: Its file there, where it is one of GGUF.
        data: A file of dialogues.
        examples: How many of them, from the first.
        pack_length: Tokens of a packed row at most.
        packed_rows: Packed rows a step.
        scratch: A directory for what trainers write.
        device: What to train on.
    """

    base: Path
    gguf_file: str | None
    data: Path
    examples: int
    pack_length: int
    packed_rows: int
    scratch: Path
    device: Device


def parley(setting: Setting, *, packed: bool = False) -> Clock:
    """`parley fit` with the recipe, as the command line would start it."""
    from src.commands import trainer

    options: dict[str, Any] = {
        "model.init_args.model_name_or_path": setting.base,
        "model.init_args.gguf_file": setting.gguf_file or "null",
        "data.init_args.path": setting.data,
        "data.init_args.format": "auto",  # the chat template where the model has one
        "data.init_args.train_split": f"train[:{setting.examples}]",
        "data.init_args.validation_split": "validation[:8]",
        "data.init_args.cache_dir": setting.scratch / "cache",
        "trainer.max_epochs": 1,
        "trainer.default_root_dir": setting.scratch / "runs",
        "trainer.limit_val_batches": 0,
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "trainer.callbacks+": "benchmarks.clocks.FitClock",
    }
    if packed:
        options |= {
            "data.init_args.packing": "true",
            "data.init_args.pack_length": setting.pack_length,
            "data.init_args.batch_size": setting.packed_rows,
        }
    given = [f"--{name}={value}" for name, value in options.items()]
    FitClock.examples = 0
    trainer.run("fit", ["-c", str(RECIPE), "-c", str(setting.device.recipe), *given])
    if FitClock.examples != setting.examples:
        raise RuntimeError(
            f"{FitClock.examples} of {setting.examples} examples were trained on; nothing can be said of speed."
        )
    return FitClock.latest


def plain_loop(setting: Setting) -> Clock:
    """Model, adapter, AdamW, and a loop over padded batches."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    rows = encoded(setting)
    tokenizer = tokenizer_of(setting)
    torch.manual_seed(42)
    model = AutoModelForCausalLM.from_pretrained(setting.base, dtype=torch.float32, **named(setting))
    model = get_peft_model(model, adapter()).train().to(setting.device.torch)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    order, clock = torch.randperm(len(rows)).tolist(), Clock(device=setting.device)
    clock.start()
    for start in range(0, len(rows), 8):
        chosen = [rows[index] for index in order[start : start + 8]]
        width = max(len(row["input_ids"]) for row in chosen)
        fills = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
        batch = {
            name: torch.tensor(
                [row[name] + [fill] * (width - len(row[name])) for row in chosen], device=setting.device.torch
            )
            for name, fill in fills.items()
        }
        with setting.device.autocast():
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    clock.lap()
    return clock


@contextmanager
def unchanged(module: ModuleType) -> Iterator[None]:
    """Give a Python module's names their values back at the end: Liger exchanges functions of the whole process."""
    before = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(before)


def sft_trainer(setting: Setting, *, strategy: str, liger: bool = False) -> Clock:
    """TRL's SFTTrainer over packed rows."""
    import datasets
    from transformers import AutoModelForCausalLM, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    clock = Clock(device=setting.device)
    datasets.disable_progress_bars()

    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in encoded(setting)]
    torch.manual_seed(42)
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(setting.base, dtype=torch.float32, **named(setting)),
        args=SFTConfig(
            output_dir=str(setting.scratch / "trl"),
            **setting.device.transformers_options,
            bf16=True,
            packing=True,
            packing_strategy=strategy,
            max_length=setting.pack_length,
            per_device_train_batch_size=setting.packed_rows,
            gradient_checkpointing=False,
            use_liger_kernel=liger,
            num_train_epochs=1,
            learning_rate=5e-4,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer_of(setting),
        peft_config=adapter(),
        callbacks=[timer_of(clock)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock


def with_liger(setting: Setting) -> Clock:
    """TRL's SFTTrainer over packed rows, with Liger's kernels, which it puts in the place of a Llama's functions."""
    import liger_kernel  # noqa: F401  # TRL says so much later, and of more than that it is not there
    from transformers.models.llama import modeling_llama

    with unchanged(modeling_llama):
        return sft_trainer(setting, strategy="bfd", liger=True)


METHODS: dict[str, Callable[[Setting], Clock]] = {
    "a plain loop": plain_loop,
    "parley fit": parley,
    "parley fit, packed": partial(parley, packed=True),
    "TRL, packed": partial(sft_trainer, strategy="bfd"),
    "TRL, wrapped": partial(sft_trainer, strategy="wrapped"),
    "TRL, packed, Liger": with_liger,
}


def adapter() -> Any:
    """The recipe's."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def named(setting: Setting) -> dict[str, str]:
    """What `from_pretrained` is told of a GGUF file."""
    return {"gguf_file": setting.gguf_file} if setting.gguf_file else {}


def tokenizer_of(setting: Setting) -> Any:
    """The model's tokenizer, which pads with its EOS where it has no other token for that."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setting.base, **named(setting))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encoded(setting: Setting) -> list[dict[str, list[int]]]:
    """The examples' token ids: what Parley trains on, for the peers to train on too."""
    from src.datamodules import DialogSumDataModule

    module = DialogSumDataModule(
        str(setting.base),
        str(setting.data),
        train_split=f"train[:{setting.examples}]",
        template="summarize",
        format="auto",
        max_source_length=1024,
        cache_dir=str(setting.scratch / "cache"),
        gguf_file=setting.gguf_file,
    )
    return [
        {
            "input_ids": row["prompt_ids"] + row["target_ids"],
            "attention_mask": [1] * (len(row["prompt_ids"]) + len(row["target_ids"])),
            "labels": [-100] * len(row["prompt_ids"]) + row["target_ids"],
        }
        for row in module._encoded("train").rows
    ]


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks causal", description=__doc__)
    parser.add_argument("--model", help="a model directory; SmolLM2 (`make smollm2`) or else a Llama from scratch")
    parser.add_argument("--from-scratch", action="store_true", help="a Llama from scratch, though SmolLM2 is there")
    parser.add_argument("--examples", type=int, default=32, help="dialogues to train on, in batches of 8")
    parser.add_argument("--pack-length", type=int, default=512, help="tokens of a packed row at most")
    parser.add_argument("--packed-rows", type=int, default=4, help="packed rows a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=["a plain loop", "parley fit"], metavar="METHOD",
        help="; ".join(METHODS),
    )  # fmt: skip
    add_shape(parser, hidden_size=64, layers=2, heads=2, vocab_size=2000)
    args = parse(parser, argv, on_gpu=ON_GPU)
    quieten()

    from src.files import read_rows

    with tempfile.TemporaryDirectory() as folder:
        scratch, data = Path(folder), find_data()
        base, gguf_file = Path(args.model or SMOLLM2), None
        model = base.name
        if args.model is None and not args.from_scratch and (base / GGUF).is_file():
            gguf_file = GGUF
        elif args.model is None:
            base = scratch / "base"
            corpus = [row.cells[column] for row in read_rows(data) for column in ("dialogue", "summary")]
            model = f"a Llama of {make_shaped('llama', corpus, base, shape_of(args)) / 1e6:,.1f} M parameters"
        setting = Setting(
            base, gguf_file, data, args.examples, args.pack_length, args.packed_rows, scratch, args.device
        )
        brief = replace(setting, examples=min(8, args.examples))
        warmed = Turns({name: partial(METHODS[name], brief) for name in args.methods}, is_peer)
        warmed.play(1)
        turns = Turns({name: partial(METHODS[name], setting) for name in warmed.methods}, is_peer, warmed.left_out)
        timed = turns.play(args.rounds)
        tokens = sum(len(row["input_ids"]) for row in encoded(setting))
        first, rows = next(iter(turns.methods)), []
        for name in turns.methods:
            row: dict[str, Any] = {
                "method": name,
                "examples/s": statistics.median(args.examples / clocks[name].wall for clocks in timed),
                "tokens/s": statistics.median(tokens / clocks[name].wall for clocks in timed),
                f"× {first}": statistics.median(clocks[first].wall / clocks[name].wall for clocks in timed),
            }
            peaks = [clocks[name].peak for clocks in timed]
            if None not in peaks:
                row["peak MiB"] = round(statistics.median(peaks))
            rows.append(row)
    report(args, rows, title=f"LoRA on {model}, {args.examples} dialogues", left_out=turns.left_out)
