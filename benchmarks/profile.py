"""Profile: where the time of a training step and of a decoding step goes, by kind of operation.

Of torch.profiler: each operation's own time, that of the device where it is a GPU, put down to the kind that its name
or the one that called it says. What is left of the time on the wall is the host's: Python, the launching of kernels,
and waiting in between; the profiler itself adds to it, so that its share is an upper bound. Attention that is made of
products and a softmax (T5's, and everything that trains with dropout on a CPU) counts as those. A training step is one
of `fit` on random rows; a decoding step is one token of every row of a batch, by `parley generate`'s code.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.device import Device
from benchmarks.options import parse, report
from benchmarks.prompts import SAMPLE
from benchmarks.seq2seq import quieten
from benchmarks.shapes import FLAN_T5_BASE, add_shape, make_shaped, shape_of
from benchmarks.synthetic import MODULES, Plan, RandomRows, train
from src.inference.loading import load_finished
from src.models.corpus import read_corpus
from src.models.generation import generate_ids
from src.models.generation_options import GenerationOptions

WARM_UP = 2  # steps that are not counted
ON_GPU = {"length": 512, "batch_size": 32, "steps": 5, "new_tokens": 32, "weights": "bfloat16", **FLAN_T5_BASE}
UPDATE = "update"  # the stretch from the end of the backward pass to that of the optimiser's step, clipping included
HOST = "host, launches and gaps"
OTHERS = "element by element, and others"

# The first kind counts whose pattern is found in the name of an operation, or (a caller's) of what called it.
CALLERS = {
    "optimiser": rf"^{UPDATE}$",
    "attention": r"scaled_dot_product|flash_attention|efficient_attention|_flash_|ScaledDotProduct",
}
KINDS = {
    "optimiser": r"::_fused_adam|::_foreach_|_multi_tensor",
    "matrix products": r"::(mm|addmm|bmm|baddbmm|addbmm|mv|addmv|dot|linear|matmul|mkldnn_linear|_addmm_activation)$",
    "softmax, cross-entropy": r"softmax|nll_loss|cross_entropy|logsumexp",
    "embedding, indexing": r"::(embedding|index|gather|scatter|masked|take|where)",
    "copies": r"::(copy_|_to_copy|to|cat|stack|clone|contiguous|fill_|zero_|constant_pad_nd|_local_scalar_dense)$",
    "normalisation": r"norm|::(rsqrt|mean|var)",
}
COLUMNS = (*CALLERS, *(kind for kind in KINDS if kind not in CALLERS), OTHERS, HOST)


class Event(Protocol):
    """What is read of a `torch.autograd.profiler_util.FunctionEvent`."""

    name: str
    cpu_parent: Event | None
    device_type: Any
    self_cpu_time_total: float
    self_device_time_total: float
    is_user_annotation: bool


@dataclass(frozen=True)
class Share:
    """Where the time of a step went.

    Attributes:
        wall: Milliseconds of a step.
        by_kind: Milliseconds of it by kind, `HOST` among them.
    """

    wall: float
    by_kind: dict[str, float]


def kind_of(event: Event) -> str | None:
    """The kind of an operation; None of what is none, such as a stretch that somebody has named."""
    if "::" not in event.name or event.name.startswith("autograd::"):
        return None
    caller: Event | None = event
    while caller is not None:
        for kind, pattern in CALLERS.items():
            if re.search(pattern, caller.name):
                return kind
        caller = caller.cpu_parent
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, event.name)), OTHERS)


def share_of(events: Iterable[Event], seconds: float, steps: int, device: Device) -> Share:
    """Sum the operations' own times.

    Args:
        events: Of the profiler. What runs on the GPU is known by what launched it, where the profiler knows that.
        seconds: On the wall, of all steps.
        steps: How many.
        device: Whose time to sum.
    """
    spent: Counter[str] = Counter()
    busy = 0.0
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            busy += 0.0 if event.is_user_annotation else event.self_device_time_total
        elif (kind := kind_of(event)) is not None:
            spent[kind] += event.self_device_time_total if device.on_gpu else event.self_cpu_time_total
    spent[OTHERS] += max(0.0, busy - spent.total())  # kernels that no operation of torch's launched
    wall = seconds * 1000 / steps
    by_kind = {kind: spent[kind] / 1000 / steps for kind in COLUMNS if kind != HOST}
    return Share(wall, by_kind | {HOST: max(0.0, wall - sum(by_kind.values()))})


def profiler(device: Device) -> profile:
    """A profiler of the processor and of the device."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.on_gpu else [])]
    return profile(activities=activities)


class ProfiledSteps(Callback):
    """Profiles the steps after the first ones.

    Args:
        device: What to watch.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.profiler = profiler(device)
        self.steps = 0
        self.began = self.seconds = 0.0
        self.update: record_function | None = None

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        trainer.optimizers[0].register_step_post_hook(self.after_update)

    def on_before_optimizer_step(self, *_: Any) -> None:
        """Forward and backward pass are within the optimiser's step, in Lightning; what follows is the step itself."""
        self.update = record_function(UPDATE)
        self.update.__enter__()

    def after_update(self, *_: Any) -> None:
        assert self.update is not None
        self.update.__exit__(None, None, None)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.steps += 1
        if trainer.is_last_batch:
            self.seconds = self.device.now() - self.began
            self.profiler.stop()
        elif self.steps == WARM_UP:
            self.profiler.start()
            self.began = self.device.now()


def training(plan: Plan, device: Device) -> Share:
    """Of a training step."""
    watched = ProfiledSteps(device)
    train(plan, device, [watched])
    return share_of(watched.profiler.events(), watched.seconds, plan.steps - WARM_UP, device)


def decoding(plan: Plan, device: Device, new_tokens: int, weights: str) -> Share:
    """Of a decoding step: greedy, every row as many tokens, and the prompts read first."""
    finished = load_finished(str(plan.base), device=device.name, dtype=weights)
    batch = RandomRows(plan).batches()[0]
    options = GenerationOptions(max_new_tokens=new_tokens, min_new_tokens=new_tokens)

    def decode() -> None:
        generate_ids(
            finished.model,
            finished.tokenizer,
            batch["prompt_ids"].to(device.torch),
            batch["prompt_attention_mask"].to(device.torch),
            options,
        )

    decode()  # warms up
    seconds, events = watched(decode, device)
    return share_of(events, seconds, new_tokens, device)


def watched(work: Callable[[], None], device: Device) -> tuple[float, Any]:
    """Seconds and events of some work."""
    with profiler(device) as found:
        began = device.now()
        work()
        seconds = device.now() - began
    return seconds, found.events()


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks profile", description=__doc__)
    parser.add_argument("--architecture", choices=MODULES, default="t5")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row, a quarter of them its target")
    parser.add_argument("--batch-size", type=int, default=8, help="rows")
    parser.add_argument("--steps", type=int, default=3, help="training steps that are profiled")
    parser.add_argument("--new-tokens", type=int, default=16, help="that are decoded")
    parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32", help="their type in decoding")
    parser.add_argument("--float32", action="store_true", help="train without autocast")
    add_shape(parser, hidden_size=256, layers=4, heads=4, vocab_size=4000)
    args = parse(parser, argv, on_gpu=ON_GPU)
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        count = make_shaped(args.architecture, read_corpus([SAMPLE]), base, shape_of(args))
        precision = "32-true" if args.float32 else "bf16-mixed"
        plan = Plan(args.architecture, base, args.length, args.batch_size, args.steps + WARM_UP, precision)
        shares = {
            "training": training(plan, args.device),
            "decoding": decoding(plan, args.device, args.new_tokens, args.weights),
        }
    rows = []
    for kind in (*COLUMNS, "step"):
        row: dict[str, Any] = {"where": kind}
        for name, share in shares.items():
            spent = share.wall if kind == "step" else share.by_kind[kind]
            row |= {f"{name} ms": round(spent, 3), f"of {name}": f"{spent / share.wall:.1%}"}
        rows.append(row)
    title = (
        f"a {args.architecture} of {count / 1e6:,.1f} M parameters, {args.batch_size} rows of {args.length} tokens; "
        f"trained in {'float32' if args.float32 else 'bf16 autocast'}, decoded in {args.weights}"
    )
    report(args, rows, title=title)
