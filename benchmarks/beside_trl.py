"""What the benchmarks of decoder-only methods beside TRL's trainers share: the adapter, the clock, the options."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from peft import LoraConfig

from benchmarks.shapes import add_shape


def adapter() -> LoraConfig:
    """On a GPT-2's attention, the same for both."""
    return LoraConfig(r=16, lora_alpha=32, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")


def clock(args: argparse.Namespace) -> Callable[[], float]:
    """What seconds are counted by."""
    return args.device.processor_now if args.cpu_time else args.device.now


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model's size, how often the methods take turns, and how they are timed."""
    parser.add_argument("--rounds", type=int, default=2, help="how often the methods take turns")
    add_shape(parser, hidden_size=256, layers=6, heads=4, vocab_size=8000)
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the processor's seconds, on a machine that has more to do"
    )
    parser.add_argument("--float32", action="store_true", help="leave bf16 out: not every CPU has instructions for it")
