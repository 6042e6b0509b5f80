"""Fine-tuning an encoder-decoder: real tokens per second of Parley and of transformers' own trainers.

Same model, dialogues, batch size, epochs and process. The methods take turns, each round in another order, so that
what the machine does meanwhile falls on all of them; the ratios are medians over rounds. Padding does not count as a
token. Start-up does not count as time: the clock runs from the first batch of the first epoch to the last batch of
the last, on a fresh model and optimiser, after every method has trained a few batches that nobody timed.

On a GPU whose peak is known, model FLOP/s utilisation (MFU) is the operations of the model's own matrix products, over
what the GPU could do in that time: two a weight and token forward, four backward (Kaplan et al. 2020, arXiv:2001.08361,
section 2.1; MFU is from Chowdhery et al. 2022, arXiv:2204.02311, appendix B). A token counts on the side of the
encoder-decoder that it passes, padding and attention's scores count nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.clocks import Clock, FitClock, timer_of
from benchmarks.device import CPU, ROOT, Device
from benchmarks.options import parse, report
from benchmarks.shapes import FLAN_T5_BASE, Shape, add_shape, make_shaped, shape_of
from benchmarks.turns import Turns

RECIPE = ROOT / "configs/dialogsum_seq2seq.yaml"
TARGETS = {"padded": 5.0, "grouped+bf16": 1.2}  # how much faster Parley is to be
ON_CPU = ["padded", "dynamic", "grouped", "grouped+bf16", "parley", "parley+options"]
ON_GPU = {
    "examples": 480,
    "epochs": 8,
    "batch_size": 128,
    "rounds": 2,
    "budget": 32_768,
    "methods": ["grouped+bf16", "grouped+bf16+compiled", "parley", "parley+options", "parley+compiled"],
    **FLAN_T5_BASE,
}


@dataclass(frozen=True)
class Setting:
    """What is the same for every method.

    Attributes:
        base: The model's directory.
        data: A file of dialogues.
        examples: How many of them, from the first.
        batch_size: Examples an optimiser step.
        epochs: Times over the examples.
        budget: Tokens a batch at most, where a method goes by that.
        scratch: A directory for what trainers write.
        device: What to train on.
    """

    base: Path
    data: Path
    examples: int
    batch_size: int
    epochs: int
    budget: int
    scratch: Path
    device: Device = CPU


Method = Callable[[Setting], Clock]


def parley(*words: str) -> Method:
    """`parley fit` with the published recipe, as the command line would start it."""

    def run(setting: Setting) -> Clock:
        from src.commands import trainer

        options = {
            "model.init_args.model_name_or_path": setting.base,
            "data.init_args.path": setting.data,
            "data.init_args.train_split": f"train[:{setting.examples}]",
            "data.init_args.validation_split": f"validation[:{setting.batch_size}]",
            "data.init_args.batch_size": setting.batch_size,
            "data.init_args.cache_dir": setting.scratch / "cache",
            "trainer.max_epochs": setting.epochs,
            "trainer.default_root_dir": setting.scratch / "runs",
            "trainer.limit_val_batches": 0,
            "trainer.enable_progress_bar": False,
            "trainer.enable_model_summary": False,
            "trainer.callbacks+": "benchmarks.clocks.FitClock",
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        more = [word.format(**vars(setting)) for word in words]
        FitClock.examples = 0
        trainer.run("fit", ["-c", str(RECIPE), "-c", str(setting.device.recipe), *given, *more])
        expected = setting.examples * setting.epochs
        if FitClock.examples != expected:
            raise RuntimeError(
                f"{FitClock.examples} of {expected} examples were trained on; nothing can be said of speed."
            )
        return FitClock.latest

    return run


def transformers_trainer(
    *, padded: bool = False, grouped: bool = False, bf16: bool = False, compiled: bool = False
) -> Method:
    """The Trainer of transformers with everything padded to 512 (the published recipe), or Seq2SeqTrainer."""

    def run(setting: Setting) -> Clock:
        from datasets import Dataset
        from transformers import (
            AutoModelForSeq2SeqLM,
            AutoTokenizer,
            DataCollatorForSeq2Seq,
            PrinterCallback,
            Seq2SeqTrainer,
            Seq2SeqTrainingArguments,
            Trainer,
            TrainingArguments,
        )

        clock = Clock(device=setting.device)
        torch.manual_seed(42)
        model = AutoModelForSeq2SeqLM.from_pretrained(setting.base)
        tokenizer = AutoTokenizer.from_pretrained(setting.base)
        rows = encoded(setting)
        arguments: dict[str, Any] = {
            "output_dir": str(setting.scratch),
            "learning_rate": 1e-5,
            "weight_decay": 0.01,
            "num_train_epochs": setting.epochs,
            "per_device_train_batch_size": setting.batch_size,
            "bf16": bf16,
            "torch_compile": compiled,
            **setting.device.transformers_options,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "log_level": "error",
        }
        if padded:  # no attention mask and no -100 in the labels, as published
            pad = tokenizer.pad_token_id
            data = Dataset.from_list([{key: _fill(ids, pad) for key, ids in row.items()} for row in rows])
            trainer = Trainer(model, TrainingArguments(**arguments), train_dataset=data, callbacks=[timer_of(clock)])
        else:
            data = Dataset.from_list([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows])
            trainer = Seq2SeqTrainer(
                model,
                Seq2SeqTrainingArguments(
                    **arguments, train_sampling_strategy="group_by_length" if grouped else "random"
                ),
                DataCollatorForSeq2Seq(tokenizer, model),
                data,
                callbacks=[timer_of(clock)],
            )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return clock

    return run


METHODS: dict[str, tuple[str, Method]] = {
    "padded": ("Trainer, both sides padded to 512 (published recipe)", transformers_trainer(padded=True)),
    "dynamic": ("Seq2SeqTrainer, dynamic padding", transformers_trainer()),
    "grouped": ("Seq2SeqTrainer, + length grouping", transformers_trainer(grouped=True)),
    "grouped+bf16": ("Seq2SeqTrainer, + length grouping, bf16", transformers_trainer(grouped=True, bf16=True)),
    "grouped+bf16+compiled": (
        "Seq2SeqTrainer, + length grouping, bf16, torch_compile",
        transformers_trainer(grouped=True, bf16=True, compiled=True),
    ),
    "parley": ("parley fit, recipe as it stands (bf16)", parley()),
    "parley+options": (
        "parley fit, max_tokens_per_batch",
        parley("--data.init_args.max_tokens_per_batch={budget}"),
    ),
    "parley+compiled": (
        "parley fit, max_tokens_per_batch, torch_compile",
        parley("--data.init_args.max_tokens_per_batch={budget}", "--model.init_args.torch_compile=true"),
    ),
}


def encoded(setting: Setting) -> list[dict[str, list[int]]]:
    """The examples' token ids: what Parley trains on, for the peers to train on too."""
    from src.datamodules import DialogSumDataModule

    data = DialogSumDataModule(
        str(setting.base),
        str(setting.data),
        train_split=f"train[:{setting.examples}]",
        template="summarize",
        cache_dir=str(setting.scratch / "cache"),
    )
    rows = data._encoded("train").rows
    return [{"input_ids": row["prompt_ids"], "labels": row["target_ids"]} for row in rows]


def _fill(ids: list[int], pad: int, width: int = 512) -> list[int]:
    return ids + [pad] * (width - len(ids))


def find_data() -> Path:
    """DialogSum's dev split where it is, else the bundled sample's training split."""
    data = Path(os.environ.get("PARLEY_DATA", ROOT / "../shared/data")) / "dialogsum/dialogsum.dev.jsonl"
    return data.resolve() if data.is_file() else ROOT / "src/datamodules/sample/train.jsonl"


def make_base(data: Path, directory: Path, shape: Shape) -> int:
    """A T5 from scratch with a tokenizer trained on the dialogues.

    Returns:
        Its number of parameters.
    """
    from src.files import read_rows

    corpus = [row.cells[column] for row in read_rows(data) for column in ("dialogue", "summary")]
    return make_shaped("t5", corpus, directory, shape)


def measure(setting: Setting, names: Sequence[str], rounds: int) -> tuple[list[dict[str, Clock]], list[str]]:
    """Time every method in every round.

    Returns:
        By round and method; and the methods that cannot run here, with their reasons.
    """
    brief = replace(setting, examples=min(setting.examples, 3 * setting.batch_size), epochs=1)
    warmed = Turns({name: partial(METHODS[name][1], brief) for name in names}, is_peer)
    warmed.play(1)
    turns = Turns({name: partial(METHODS[name][1], setting) for name in warmed.methods}, is_peer, warmed.left_out)
    timed = turns.play(rounds)
    for number, clocks in enumerate(timed, 1):
        print(f"round {number}:", ", ".join(f"{name} {clock.wall:.1f} s" for name, clock in clocks.items()), flush=True)
    return timed, turns.left_out


def is_peer(name: str) -> bool:
    """Whether a method is another library's."""
    return not name.startswith("parley")


def summarise(
    timed: list[dict[str, Clock]], tokens: int, *, operations: float = 0.0, peak_flops: float | None = None
) -> list[dict[str, Any]]:
    """One row a method: medians over rounds, of figures and of ratios within a round.

    Args:
        timed: By round and method.
        tokens: Of a method in a round.
        operations: Of the model's matrix products in a round, for MFU.
        peak_flops: What the device is made for, in operations a second; no MFU when None.
    """
    rows = []
    for name in timed[0]:
        row: dict[str, Any] = {"method": METHODS[name][0]}
        row["tokens/s"] = round(statistics.median(tokens / clocks[name].wall for clocks in timed))
        row["tokens/CPU-s"] = round(statistics.median(tokens / clocks[name].cpu for clocks in timed))
        for peer in TARGETS:
            if peer in timed[0]:
                for kind in ("wall", "cpu"):
                    ratios = [getattr(clocks[peer], kind) / getattr(clocks[name], kind) for clocks in timed]
                    row[f"× {peer}, {kind}"] = f"{statistics.median(ratios):.2f}"
        peaks = [clocks[name].peak for clocks in timed]
        if None not in peaks:
            row["peak MiB"] = round(statistics.median(peaks))
        if peak_flops is not None:
            rate = statistics.median(operations / clocks[name].wall for clocks in timed)
            row["MFU"] = f"{rate / peak_flops:.1%}"
        rows.append(row)
    return rows


def operations_of(base: Path, read: int, written: int) -> float:
    """Operations of a model's matrix products in training, forward and backward.

    Args:
        base: The directory of an encoder-decoder.
        read: Tokens that its encoder has read.
        written: Tokens that its decoder has written.
    """
    from src.models.config import load_config
    from src.models.loading import model_from_config

    with torch.device("meta"):
        model = model_from_config(load_config(base))
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            crosses = "EncDecAttention" in name and name.endswith((".k", ".v"))  # keys and values of what was read
            total += module.weight.numel() * (read if crosses or name.startswith("encoder.") else written)
    return 6.0 * total


def quieten() -> None:
    """Leave the terminal to the figures."""
    from transformers.utils.logging import disable_progress_bar

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    disable_progress_bar()
    loud = (
        "lightning.fabric.utilities.seed",
        "lightning.pytorch",
        "lightning.pytorch.utilities.rank_zero",
        "transformers",
    )
    for name in loud:
        logging.getLogger(name).setLevel(logging.ERROR)


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks seq2seq", description=__doc__)
    parser.add_argument("--examples", type=int, default=96, help="dialogues to train on")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=3200, help="max_tokens_per_batch, where that is used")
    parser.add_argument("--threads", type=int, help="threads of torch; as torch likes when left out")
    add_shape(parser, hidden_size=256, layers=4, heads=4, vocab_size=4000)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=ON_CPU, metavar="METHOD")
    options = parse(parser, argv, on_gpu=ON_GPU)
    if options.threads:
        torch.set_num_threads(options.threads)
    quieten()
    with tempfile.TemporaryDirectory() as directory:
        scratch, data = Path(directory), find_data()
        size = make_base(data, scratch / "base", shape_of(options))
        setting = Setting(
            scratch / "base", data, options.examples, options.batch_size, options.epochs, options.budget, scratch,
            options.device,
        )  # fmt: skip
        rows = encoded(setting)
        read, written = (sum(len(row[side]) for row in rows) * options.epochs for side in ("input_ids", "labels"))
        tokens = read + written
        title = (
            f"T5 of {size / 1e6:.1f} M parameters; {options.examples} dialogues of {data.name}, {tokens:,} tokens that "
            f"are not padding; batch size {options.batch_size}; torch {torch.__version__} with "
            f"{torch.get_num_threads()} threads"
        )
        timed, left_out = measure(setting, options.methods, options.rounds)
        operations = operations_of(setting.base, read, written)
        table = summarise(timed, tokens, operations=operations, peak_flops=options.device.peak_flops)
    report(options, table, title=title, left_out=left_out)
