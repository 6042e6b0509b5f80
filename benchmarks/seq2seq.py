"""Fine-tuning an encoder-decoder: real tokens per second of Parley and of transformers' own trainers.

Same model, dialogues, batch size, epochs and process. The methods take turns, each round in another order, so that
what the machine does meanwhile falls on all of them; the ratios are medians over rounds. Padding does not count as a
token. Start-up does not count as time: the clock runs from the first batch of the first epoch to the last batch of
the last, on a fresh model and optimiser, after every method has trained a few batches that nobody timed.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

ROOT = Path(__file__).resolve().parent.parent
RECIPE, CPU = ROOT / "configs/dialogsum_seq2seq.yaml", ROOT / "configs/trainer/cpu.yaml"
TARGETS = {"padded": 5.0, "grouped+bf16": 1.2}  # how much faster Parley is to be


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
    """

    base: Path
    data: Path
    examples: int
    batch_size: int
    epochs: int
    budget: int
    scratch: Path


@dataclass
class Clock:
    """Wall and CPU seconds of a stretch of this process."""

    wall: float = 0.0
    cpu: float = 0.0

    def start(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        """Seconds since the start, until the next lap."""
        self.wall = time.perf_counter() - self._started[0]
        self.cpu = time.process_time() - self._started[1]


Method = Callable[[Setting], Clock]


class FitClock(Callback):
    """Times Lightning's training loop."""

    latest = Clock()
    examples = 0  # seen by the latest run

    def on_train_start(self, *_: Any) -> None:
        FitClock.latest, FitClock.examples = Clock(), 0
        self.latest.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.latest.lap()
        FitClock.examples += len(batch["id"])


def parley(*words: str) -> Method:
    """`parley fit` with the published recipe on a CPU, as the command line would start it."""

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
            "trainer.callbacks+": "benchmarks.seq2seq.FitClock",
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        more = [word.format(**vars(setting)) for word in words]
        FitClock.examples = 0
        trainer.run("fit", ["-c", str(RECIPE), "-c", str(CPU), *given, *more])
        expected = setting.examples * setting.epochs
        if FitClock.examples != expected:
            raise RuntimeError(
                f"{FitClock.examples} of {expected} examples were trained on; nothing can be said of speed."
            )
        return FitClock.latest

    return run


def transformers_trainer(*, padded: bool = False, grouped: bool = False, bf16: bool = False) -> Method:
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
            TrainerCallback,
            TrainingArguments,
        )

        clock = Clock()

        class Timer(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                clock.start()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.lap()

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
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "log_level": "error",
        }
        if padded:  # no attention mask and no -100 in the labels, as published
            pad = tokenizer.pad_token_id
            data = Dataset.from_list([{key: _fill(ids, pad) for key, ids in row.items()} for row in rows])
            trainer = Trainer(model, TrainingArguments(**arguments), train_dataset=data, callbacks=[Timer()])
        else:
            data = Dataset.from_list([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows])
            trainer = Seq2SeqTrainer(
                model,
                Seq2SeqTrainingArguments(
                    **arguments, train_sampling_strategy="group_by_length" if grouped else "random"
                ),
                DataCollatorForSeq2Seq(tokenizer, model),
                data,
                callbacks=[Timer()],
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
    "parley": ("parley fit, recipe as it stands (bf16)", parley()),
    "parley+options": (
        "parley fit, max_tokens_per_batch",
        parley("--data.init_args.max_tokens_per_batch={budget}"),
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


def make_base(data: Path, directory: Path, *, hidden_size: int, layers: int) -> int:
    """A T5 from scratch with a tokenizer trained on the dialogues.

    Returns:
        Its number of parameters.
    """
    from src.files import read_rows
    from src.models.scratch import Sizes, make_base_model

    corpus = [row.cells[column] for row in read_rows(data) for column in ("dialogue", "summary")]
    sizes = Sizes(hidden_size=hidden_size, layers=layers, heads=4, vocab_size=4000)
    model, _ = make_base_model("t5", corpus, directory, sizes)
    return sum(parameter.numel() for parameter in model.parameters())


def measure(setting: Setting, names: Sequence[str], rounds: int) -> list[dict[str, Clock]]:
    """Time every method in every round."""
    brief = Setting(**{**vars(setting), "examples": min(setting.examples, 3 * setting.batch_size), "epochs": 1})
    for name in names:
        METHODS[name][1](brief)
    timed = []
    for number in range(rounds):
        start = number % len(names)
        timed.append({name: METHODS[name][1](setting) for name in [*names[start:], *names[:start]]})
        print(f"round {number + 1}:", ", ".join(f"{name} {timed[-1][name].wall:.1f} s" for name in names), flush=True)
    return timed


def summarise(timed: list[dict[str, Clock]], tokens: int) -> list[dict[str, Any]]:
    """One row a method: medians over rounds, of figures and of ratios within a round."""
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
        rows.append(row)
    return rows


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
    parser.add_argument("--hidden-size", type=int, default=256, help="of the T5; heads: 4, feed-forward: 4 times this")
    parser.add_argument("--layers", type=int, default=4, help="of the T5, on either side")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    quieten()

    from src.commands.output import show

    with tempfile.TemporaryDirectory() as directory:
        scratch, data = Path(directory), find_data()
        size = make_base(data, scratch / "base", hidden_size=options.hidden_size, layers=options.layers)
        setting = Setting(
            scratch / "base", data, options.examples, options.batch_size, options.epochs, options.budget, scratch
        )
        tokens = sum(len(ids) for row in encoded(setting) for ids in row.values()) * options.epochs
        print(
            f"T5 of {size / 1e6:.1f} M parameters; {options.examples} dialogues of {data.name}, {tokens:,} tokens that "
            f"are not padding; batch size {options.batch_size}; torch {torch.__version__} with "
            f"{torch.get_num_threads()} threads",
            flush=True,
        )
        rows = summarise(measure(setting, options.methods, options.rounds), tokens)
    show(rows, as_json=options.json)
