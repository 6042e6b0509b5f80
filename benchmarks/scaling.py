"""Scaling: tokens a second and peak memory of a training step, over the length of rows, their number and the model.

One of the three is varied, the others stay. Rows are of random tokens, all equally long, three quarters prompt; the
model is trained whole under bf16 autocast as `fit` trains it. Each point is a process of its own; its seconds are the
mean over the steps after the first ones, its memory the highest resident one above what the process held before it
loaded the model (on a GPU, the most that torch's allocator gave out). A slope is that of the straight line through the
logarithms, by least squares: 1 is proportional, 2 quadratic.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from benchmarks.device import Device
from benchmarks.options import parse, report
from benchmarks.prompts import SAMPLE
from benchmarks.seq2seq import quieten
from benchmarks.shapes import FLAN_T5_BASE, add_shape, make_shaped, shape_of
from benchmarks.synthetic import MODULES, Plan, train
from src.models.corpus import read_corpus

WARM_UP = 2  # steps that are not counted
WIDTH_OF_A_HEAD = 64
ON_GPU = {
    "lengths": [128, 256, 512, 1024, 2048],
    "length": 512,
    "batch_sizes": [4, 8, 16, 32, 64],
    "batch_size": 16,
    "widths": [256, 512, 768, 1024],
    "steps": 10,
    **FLAN_T5_BASE,
}
VARIED = {"length": "tokens a row", "rows": "rows a step", "model": "parameters"}


@dataclass(frozen=True)
class Point:
    """What was measured of one plan.

    Attributes:
        varied: One of `VARIED`.
        length: Tokens of a row.
        rows: In a batch.
        parameters: Of the model.
        seconds: Of a step.
        peak: MiB.
    """

    varied: str
    length: int
    rows: int
    parameters: int
    seconds: float
    peak: float

    @property
    def x(self) -> float:
        """What is varied."""
        return {"length": self.length, "rows": self.rows, "model": self.parameters}[self.varied]

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.length * self.rows / self.seconds


class StepClock(Callback):
    """Times the steps after the first ones, all together.

    Args:
        now: The clock.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.began = self.seconds = 0.0
        self.steps = 0

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.steps += 1
        if self.steps == WARM_UP:
            self.began = self.now()
        if trainer.is_last_batch:
            self.seconds = (self.now() - self.began) / (self.steps - WARM_UP)


def measure(plan: Plan, device: Device, cpu_time: bool, results: Any) -> None:
    """Train; report seconds of a step, and the peak above the start in MiB."""
    quieten()
    before, clock = device.held_mib(), StepClock(device.processor_now if cpu_time else device.now)
    train(plan, device, [clock])
    results.put((clock.seconds, device.peak_mib() - before))


def apart(plan: Plan, device: Device, cpu_time: bool) -> tuple[float, float]:
    """`measure` in a process of its own.

    Raises:
        RuntimeError: It failed.
    """
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    process = spawn.Process(target=measure, args=(plan, device, cpu_time, results))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("it failed; its own message is above")
    found: tuple[float, float] = results.get()
    return found


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The exponent of the power law through the points: least squares on both logarithms.

    Args:
        xs: Above 0, not all the same.
        ys: Above 0, as many.
    """
    across, up = [math.log(x) for x in xs], [math.log(y) for y in ys]
    middle, level = sum(across) / len(across), sum(up) / len(up)
    moment = sum((x - middle) * (y - level) for x, y in zip(across, up, strict=True))
    return moment / sum((x - middle) ** 2 for x in across)


def rows_of(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The table: a row a point, and on each the slopes of its group."""
    rows = []
    for varied, name in VARIED.items():
        group = [point for point in points if point.varied == varied]
        xs = [point.x for point in group]
        fitted = len(set(xs)) > 1
        slopes = {
            "slope, step s": round(slope(xs, [point.seconds for point in group]), 2) if fitted else None,
            "slope, tokens/s": round(slope(xs, [point.rate for point in group]), 2) if fitted else None,
            "slope, peak": round(slope(xs, [point.peak for point in group]), 2) if fitted else None,
        }
        rows += [
            {
                "varied": name,
                "length": point.length,
                "rows": point.rows,
                "parameters, M": round(point.parameters / 1e6, 1),
                "step s": point.seconds,
                "tokens/s": round(point.rate),
                "peak MiB": round(point.peak),
                **slopes,
            }
            for point in group
        ]
    return rows


def plans_of(args: argparse.Namespace, folder: Path) -> list[tuple[str, Plan, int]]:
    """What is varied, the plan and the model's parameters, of every point; makes the models."""
    shape, parameters, bases = shape_of(args), {}, {}
    for width in sorted({*args.widths, args.hidden_size}):
        own = shape
        if width != args.hidden_size:
            scale = width / args.hidden_size
            sizes = replace(
                shape.sizes,
                hidden_size=width,
                heads=max(1, width // WIDTH_OF_A_HEAD),
                feed_forward_size=round(shape.sizes.feed_forward * scale),
            )
            own = replace(shape, sizes=sizes)
        bases[width] = folder / f"width-{width}"
        parameters[width] = make_shaped(args.architecture, read_corpus([SAMPLE]), bases[width], own)
    precision = "32-true" if args.float32 else "bf16-mixed"
    basis = Plan(
        args.architecture, bases[args.hidden_size], args.length, args.batch_size, args.steps + WARM_UP, precision
    )
    return [
        *(("length", replace(basis, length=length), parameters[args.hidden_size]) for length in args.lengths),
        *(("rows", replace(basis, rows=rows), parameters[args.hidden_size]) for rows in args.batch_sizes),
        *(("model", replace(basis, base=bases[width]), parameters[width]) for width in args.widths),
    ]


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks scaling", description=__doc__)
    parser.add_argument("--architecture", choices=MODULES, default="t5")
    parser.add_argument("--lengths", type=int, nargs="*", default=[64, 128, 256], help="tokens a row")
    parser.add_argument("--length", type=int, default=128, help="tokens a row where something else is varied")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[2, 4, 8], help="rows a step")
    parser.add_argument("--batch-size", type=int, default=4, help="rows a step where something else is varied")
    parser.add_argument("--widths", type=int, nargs="*", default=[128, 256, 384], help="of the models")
    parser.add_argument("--steps", type=int, default=3, help="that are timed of each point")
    parser.add_argument("--float32", action="store_true", help="without autocast")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the processor's seconds, on a machine that has more to do"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw it")
    add_shape(parser, hidden_size=256, layers=4, heads=4, vocab_size=4000)
    args = parse(parser, argv, on_gpu=ON_GPU)
    quieten()
    points: list[Point] = []
    left_out: list[str] = []
    measured: dict[Plan, tuple[float, float]] = {}  # a plan belongs to several groups
    with tempfile.TemporaryDirectory() as folder:
        for varied, plan, parameters in plans_of(args, Path(folder)):
            try:
                if plan not in measured:
                    measured[plan] = apart(plan, args.device, args.cpu_time)
                    seconds, peak = measured[plan]
                    what = f"{plan.length} tokens a row, {plan.rows} rows, {parameters / 1e6:.1f} M parameters"
                    print(f"{what}: {seconds:.3f} s a step, {peak:,.0f} MiB", file=sys.stderr, flush=True)
            except RuntimeError as error:  # most likely there is not enough memory for it
                left_out.append(f"{plan.length} tokens a row, {plan.rows} rows, {parameters:,} parameters: {error}")
                continue
            points.append(Point(varied, plan.length, plan.rows, parameters, *measured[plan]))
    if not points:
        raise SystemExit("no point could be measured; the messages are above.")
    if args.picture is not None:
        from benchmarks.scaling_picture import draw

        draw(points, args.device.title, args.picture)
    title = f"a training step of a {args.architecture}, {'float32' if args.float32 else 'bf16 autocast'}"
    report(args, rows_of(points), title=title, left_out=left_out)
