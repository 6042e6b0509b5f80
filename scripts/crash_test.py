"""Ends a run at random moments, resumes it each time, and compares it with a run that nobody ended, bit for bit.

    python scripts/crash_test.py --task seq2seq --kills 5 --seed 0

Both runs are the real command, `python -m src fit`, on the bundled sample with a base that `parley init` makes. Every
third kill waits for a checkpoint that is being written, and of a method that learns from its own answers another third
for a rollout that is being made. What must be equal at the end is in `scripts/compare_runs.py`: checkpoints, logs,
tables, settings and W&B's rows, to the bit. With `--elastic 1,2,1` the run goes on with another number of processes
each time, and what it computes must be equal to float tolerance. The exit status is 1 when something is not, or when
the run was at its end before it was killed as often as was asked for.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.compare_runs import (  # noqa: E402
    checkpoints_of,
    compare_runs,
    compare_runs_closely,
    repeated_steps,
    version_of,
)
from scripts.crash_processes import PATIENCE, Command, Fork, How, Process, end  # noqa: E402
from scripts.crash_tasks import (  # noqa: E402
    BATCHES_AN_ITERATION,
    STEPS_AN_EPOCH,
    STRATEGIES,
    TASKS,
    Dealing,
    pairs_of,
    words_of,
    write_pairs,
)
from src.callbacks.storage import is_whole  # noqa: E402
from src.commands.output import show  # noqa: E402

SIZES = "--hidden-size 32 --layers 1 --heads 2 --feed-forward-size 64 --vocab-size 400"
STEPS_A_KILL = 20


@dataclass
class Result:
    """What a crash test found.

    Attributes:
        kills: Times that the run was ended.
        while_writing: Of these, how many left a checkpoint half written.
        in_rollouts: Of these, how many while a method made answers to learn from.
        repeated_steps: Steps that had been logged beyond the last checkpoint and were done again, over all kills.
        steps: Steps of the whole run.
        differences: What is not equal in the end.
    """

    task: str
    kills: int = 0
    while_writing: int = 0
    in_rollouts: int = 0
    repeated_steps: int = 0
    steps: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not self.differences


@dataclass
class CrashTest:
    """Two runs under one directory.

    Attributes:
        arguments: The command line.
        directory: Where everything goes.
    """

    arguments: argparse.Namespace
    directory: Path

    def run(self) -> Result:
        """Run in peace, run with kills, compare."""
        given = self.arguments
        self._init()
        peaceful, killed = self.directory / "peaceful", self.directory / "killed"
        self._finish(self._start(peaceful, 0))
        result = Result(given.task)
        chance = random.Random(given.seed)
        while result.kills < given.kills and self._kill_once(killed, chance, result):
            pass
        self._finish(self._start(killed, result.kills))
        result.steps = self._epochs * STEPS_AN_EPOCH
        if result.kills < given.kills:
            result.differences.append(
                f"the run was at its end after {result.kills} of {given.kills} kills: another --seed"
            )
        result.differences += (compare_runs_closely if given.elastic else compare_runs)(peaceful, killed)
        return result

    def _init(self) -> None:
        architecture = TASKS[self.arguments.task].architecture
        words = ["init", "--architecture", architecture, "--output", str(self.directory / "base"), *SIZES.split()]
        self._finish(self._spawn(words, self.directory / "init.log"))
        if TASKS[self.arguments.task].learns_pairs:
            write_pairs(pairs_of(self.directory / "base"))

    @property
    def _epochs(self) -> int:
        return max(2, -(-self.arguments.kills * STEPS_A_KILL // STEPS_AN_EPOCH))

    def _start(self, root: Path, number: int) -> Process:
        """Start the run for the so many-th time."""
        given = self.arguments
        task, chain = TASKS[given.task], given.elastic or [given.processes]
        dealing = Dealing(chain[number % len(chain)], math.lcm(*chain), given.accumulate)
        words = words_of(
            task,
            dealing,
            base=self.directory / "base",
            cache=self.directory / "cache",
            root=root,
            epochs=self._epochs,
            strategy=given.strategy,
        )
        words += ["--data.init_args.num_workers", str(given.workers), *(task.certain if given.elastic else ())]
        if given.asynchronous:
            words += ["--trainer.callbacks.asynchronous", "true"]
        if given.streaming:
            words += ["--data.init_args.streaming", "true", "--data.init_args.shuffle_buffer", "64"]
        if given.packed:
            words += ["--data.init_args.packing", "true", "--data.init_args.max_source_length", "24"]
        if given.compiled:
            words += ["--model.init_args.torch_compile", "true"]
        return self._spawn(words, root.with_suffix(".log"))

    def _spawn(self, words: list[str], log: Path) -> Process:
        return (Fork if self.arguments.fork else Command)(words, log)

    def _finish(self, process: Process) -> None:
        deadline = time.monotonic() + PATIENCE
        while (status := process.status()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if status != 0:
            end(process)
            raise SystemExit(f"a run ended with status {status}; see the logs in {self.directory}")

    def _kill_once(self, root: Path, chance: random.Random, result: Result) -> bool:
        """Start or resume the run and kill it; False when it came to its end first."""
        task, number = TASKS[self.arguments.task], result.kills
        in_writing, in_rollout = number % 3 == 2, number % 3 == 1 and task.minibatch is not None
        process = self._start(root, number)
        before = _signature(root)
        steps = chance.randrange(int(1.5 * STEPS_A_KILL))
        delay = chance.uniform(0, 0.002 if in_writing else 0.1)
        moments = _watch(process, root)
        changes = 0
        while changes <= steps or in_writing or in_rollout:
            moment = next(moments, None)
            if moment is None:
                return False
            changes += moment != before
            before = moment
            if changes > steps and ((in_writing and _half_written(root)) or (in_rollout and self._makes_rollout(root))):
                break
        time.sleep(delay)
        makes_rollout = task.minibatch is not None and self._makes_rollout(root)
        end(process, self.arguments.how)
        result.kills += 1
        result.in_rollouts += makes_rollout
        result.while_writing += bool(_half_written(root))
        whole = [file for file in checkpoints_of(root) if is_whole(file)]
        result.repeated_steps += repeated_steps(whole[-1]) if whole else 0
        return True

    def _makes_rollout(self, root: Path) -> bool:
        """Whether the last step that was logged was the last one of an iteration."""
        ended = BATCHES_AN_ITERATION // self.arguments.accumulate
        return (_last_step(root) + 1) % ended == 0


def _watch(process: Process, root: Path) -> Iterator[tuple[int, int]]:
    """The metric log's size and time, again and again while the run lasts."""
    deadline = time.monotonic() + PATIENCE
    while process.status() is None:
        if time.monotonic() > deadline:
            end(process)
            raise SystemExit(f"a run made no step in {PATIENCE:.0f} seconds; see {root.with_suffix('.log')}")
        yield _signature(root)
        time.sleep(0.0005)


def _metric_logs(root: Path) -> list[Path]:
    return sorted(root.glob("version_*/metrics.csv"), key=version_of, reverse=True)


def _signature(root: Path) -> tuple[int, int]:
    for file in _metric_logs(root):
        try:
            status = file.stat()
        except FileNotFoundError:  # replaced this very moment
            continue
        return status.st_size, status.st_mtime_ns
    return 0, 0


def _last_step(root: Path) -> int:
    """The step of the newest row of the metric log; 0 before there is one."""
    for file in _metric_logs(root)[:1]:
        header, *rows = file.read_text().splitlines()
        place = header.split(",").index("step")
        steps = [row.split(",")[place] for row in rows if row.count(",") == header.count(",")]
        return int(steps[-1] or 0) if steps else 0
    return 0


def _half_written(root: Path) -> list[Path]:
    return list(root.glob("version_*/checkpoints/.*.tmp"))


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True, help="what is trained")
    parser.add_argument("--kills", type=int, default=5, help="how often (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument(
        "--how",
        choices=get_args(How),
        default="group",
        help="SIGKILL to the whole process group or to the main process alone, or SIGTERM to the one or the other "
        "(group)",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches (0)")
    parser.add_argument("--accumulate", type=int, default=1, help="batches a step (1)")
    parser.add_argument("--processes", type=int, default=1, help="over gloo when more than 1 (1)")
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="ddp",
        help="of several processes: copies of the model (ddp); the model in shards (sharded); that, and checkpoints in "
        "shards too (sharded-checkpoints). ddp when left out",
    )
    parser.add_argument(
        "--elastic",
        type=lambda text: [int(part) for part in text.split(",")],
        help="processes of one start after the other, such as 1,2,1, instead of --processes",
    )
    parser.add_argument("--asynchronous", action="store_true", help="checkpoints are written while training goes on")
    parser.add_argument(
        "--streaming",
        action="store_true",
        help="rows are read and tokenised as steps take them, through a buffer of 64",
    )
    parser.add_argument("--packed", action="store_true", help="several examples in a row (causal)")
    parser.add_argument("--compiled", action="store_true", help="the model's blocks are compiled")
    parser.add_argument(
        "--fork",
        action="store_true",
        help="start the runs as forks of one process that has imported the libraries: much faster, but all of them "
        "share its hash seed",
    )
    parser.add_argument("--directory", type=Path, help="keep everything here, instead of a temporary directory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(words)
    if given.packed and given.task != "causal":
        parser.error("--packed is for --task causal")
    if given.packed and given.streaming:
        parser.error("--packed and --streaming exclude each other")
    if min(given.kills, given.processes, given.accumulate) < 1 or given.workers < 0:
        parser.error("--kills, --processes and --accumulate must be positive, --workers not negative")
    if given.elastic and min(given.elastic) < 1:
        parser.error("--elastic: numbers of processes are positive")
    if TASKS[given.task].minibatch and BATCHES_AN_ITERATION // 2 % given.accumulate:
        parser.error("--accumulate: a pass over the answers has 2 batches")
    return given


def crash(words: Sequence[str] | None) -> tuple[argparse.Namespace, Result]:
    """Do what a command line says."""
    given = parse(words)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"WANDB_SILENT": "true"}
    with tempfile.TemporaryDirectory(prefix="parley-crash-") as temporary:
        directory = given.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        return given, CrashTest(given, directory.resolve()).run()


def main(words: Sequence[str] | None = None) -> int:
    given, result = crash(words)
    row = asdict(result) | {"equal": result.equal}
    if given.json:
        show([row], as_json=True)
    else:
        row["differences"] = len(result.differences)
        show([row], title=f"{result.kills} kills survived of {given.kills}")
        for difference in result.differences[:20]:
            print(difference)
    return 0 if result.equal else 1


if __name__ == "__main__":
    sys.exit(main())
