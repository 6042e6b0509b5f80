"""What the benchmarks of decoder-only methods beside TRL's trainers share: the adapter, the clock, the options."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from peft import LoraConfig


def adapter() -> LoraConfig:
    """On a GPT-2's attention, the same for both."""
    return LoraConfig(r=16, lora_alpha=32, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")


def clock(args: argparse.Namespace) -> Callable[[], float]:
    """What seconds are counted by."""
    return time.process_time if args.cpu_time else time.perf_counter


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model's size, how often the methods take turns, and how they are timed."""
    parser.add_argument("--rounds", type=int, default=2, help="how often the methods take turns")
    parser.add_argument("--hidden-size", type=int, default=256, help="the model's width")
    parser.add_argument("--layers", type=int, default=6, help="the model's blocks")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the processor's seconds, on a machine that has more to do"
    )
    parser.add_argument("--float32", action="store_true", help="leave bf16 out: not every CPU has instructions for it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
