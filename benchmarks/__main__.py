"""`python -m benchmarks [NAME [OPTIONS]]`: one benchmark with its options, or all of them with their defaults."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from src.errors import nearest_to

# Name to what it measures. The module of that name here has a `main(argv) -> None`.
BENCHMARKS = {
    "causal": "LoRA on a decoder-only model: examples per second beside a plain training loop",
    "checkpoints": "how long a checkpoint stops training: one file and shards, in place and asynchronously",
    "dpo": "DPO on a decoder-only model beside the installed TRL's DPOTrainer: pairs per second, peak memory",
    "generation": "answers per second: batches by length, batches as they come, one prompt at a time",
    "grpo": "an iteration of GRPO on a decoder-only model beside the installed TRL's GRPOTrainer",
    "loading": "memory of its own that a process takes to load a model: DDP and shards",
    "memory": "an iteration of PPO with LoRA beside a step of LoRA fine-tuning",
    "packing": "training a chatbot on short pairs: packed rows beside padded batches",
    "ppo": "an iteration of PPO beside TRL 0.11.4, batched and as published",
    "resume": "seconds to the first step, of a resumed run and of a fresh one",
    "streaming": "peak memory of a run on data that stays on the disk, and on data in memory",
    "strategies": "one process, DDP and shards: the same losses, and bytes and seconds of each",
    "seq2seq": "fine-tuning an encoder-decoder: tokens per second beside transformers' trainers",
}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] not in BENCHMARKS:
        print("usage: python -m benchmarks [NAME [OPTIONS]]\n")
        for name, what in BENCHMARKS.items():
            print(f"{name:<11} {what}")
        if words[0] in ("-h", "--help"):
            return 0
        print(f"python -m benchmarks: there is no {words[0]!r}{nearest_to(words[0], BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in words[:1] or BENCHMARKS:
        importlib.import_module(f"benchmarks.{name}").main(words[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
