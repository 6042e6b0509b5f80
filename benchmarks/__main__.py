"""`python -m benchmarks [NAME] [OPTIONS]`: one benchmark with its options, or all of them with their defaults."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from src.errors import ParleyError, nearest_to

# Name to what it measures. The module of that name here has a `main(argv) -> None`.
BENCHMARKS = {
    "seq2seq": "fine-tuning an encoder-decoder: tokens per second beside transformers' trainers",
    "causal": "LoRA on a decoder-only model: beside a plain training loop, and packed beside TRL's SFTTrainer",
    "generation": "answers per second: batches by length, batches as they come, one prompt at a time",
    "ppo": "an iteration of PPO beside TRL 0.11.4, batched and as published",
    "grpo": "an iteration of GRPO on a decoder-only model beside the installed TRL's GRPOTrainer",
    "memory": "an iteration of PPO with LoRA beside a step of LoRA fine-tuning",
    "dpo": "DPO on a decoder-only model beside the installed TRL's DPOTrainer: pairs per second, peak memory",
    "packing": "training a chatbot on short pairs: packed rows beside padded batches",
    "scaling": "tokens per second and peak memory over sequence length, batch size and model size, with slopes",
    "profile": "where the time of a training step and of a decoding step goes",
    "checkpoints": "how long a checkpoint stops training: one file and shards, in place and asynchronously",
    "resume": "seconds to the first step, of a resumed run and of a fresh one",
    "loading": "memory of its own that a process takes to load a model: DDP and shards",
    "strategies": "one process, DDP and shards: the same losses, and bytes and seconds of each",
    "streaming": "peak memory of a run on data that stays on the disk, and on data in memory",
}
USAGE = """usage: python -m benchmarks [NAME] [--device cpu|cuda] [OPTIONS]
       python -m benchmarks table [FILE ...]
"""


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return run(words)
    except ParleyError as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2


def run(words: list[str]) -> int:
    """Do what the words say.

    Returns:
        An exit status.

    Raises:
        ParleyError: There is no such benchmark, device or file.
    """
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        print(USAGE)
        for each, what in BENCHMARKS.items():
            print(f"{each:<11} {what}")
        return 0
    if name == "table":
        print_tables([Path(word) for word in words[1:]])
        return 0
    if not name or name.startswith("-"):
        from benchmarks.whole import run_all

        return run_all(list(BENCHMARKS), words)
    if name not in BENCHMARKS:
        raise ParleyError(f"there is no {name!r}{nearest_to(name, [*BENCHMARKS, 'table'])}")
    from benchmarks.device import PassedOverError

    try:
        importlib.import_module(f"benchmarks.{name}").main(words[1:])
    except PassedOverError as reason:
        print(f"{name} is passed over: it {reason}.")
    return 0


def print_tables(files: Sequence[Path]) -> None:
    """Print files of results as markdown; all of `benchmarks/results` when none is given.

    Raises:
        ParleyError: There is none, or one cannot be read.
    """
    from benchmarks.results import FOLDER, as_markdown, read

    found = list(files) or sorted(FOLDER.glob("*.json"))
    if not found:
        raise ParleyError("there are no results yet; `python -m benchmarks --device cuda` writes some.")
    print("\n".join(as_markdown(*read(file)) for file in found))


if __name__ == "__main__":
    sys.exit(main())
