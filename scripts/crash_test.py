"""Kills a run at random moments, resumes it each time, and compares it with a run that nobody killed, bit for bit.

    python scripts/crash_test.py --task seq2seq --kills 5 --seed 0

Both runs are the real command, `python -m src fit`, on the bundled sample with a base that `parley init` makes. Every
third kill waits for a checkpoint that is being written. What must be equal at the end: the last checkpoint (weights,
optimiser, schedule, loops, random states, callbacks), the metric log but for what depends on the clock, and every
table that the run wrote. The exit status is 1 when something is not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.compare_runs import checkpoints_of, compare_runs, repeated_steps, version_of  # noqa: E402
from src.callbacks.storage import is_whole  # noqa: E402
from src.commands.output import show  # noqa: E402


def _online(method: str, *own: str) -> tuple[str, str, list[str]]:
    """A method that learns from its own answers, with several training steps an iteration."""
    options = f"--model.init_args.{method}"
    return (
        "t5",
        f"demo/dialogsum_{method}.yaml",
        [
            *("--model.init_args.reward", "LengthReward", "--model.init_args.reward.init_args.target", "6"),
            *(f"{options}.use_score_scaling", "true"),
            *("--model.init_args.rollout.output_min_length", "4", "--model.init_args.rollout.output_max_length", "8"),
            *("--model.init_args.rollout.min_new_tokens", "2", *own),
        ],
    )


def _groups_of_two(method: str) -> list[str]:
    options = f"--model.init_args.{method}"
    return [
        *(f"{options}.num_generations", "2", f"{options}.num_iterations", "2", f"{options}.minibatch_size", "4"),
    ]


ONLINE_STEPS = 4  # training steps of an iteration, so that every second checkpoint falls between two of them
TASKS = {
    "seq2seq": ("t5", "dialogsum_seq2seq.yaml", ["--model.init_args.optimizer.init_args.lr", "0.01"]),
    "lora": ("t5", "dialogsum_lora.yaml", ["--model.init_args.optimizer.init_args.lr", "0.01"]),
    "causal": (
        "gpt2",
        "dialogsum_causal_lora.yaml",
        [
            *("--model.init_args.lora", "null"),
            *("--model.init_args.dropout", "0.1"),
            *("--data.init_args.format", "plain"),
        ],
    ),
    "ppo": _online(
        "ppo",
        *("--model.init_args.ppo.adaptive_kl", "true", "--model.init_args.ppo.horizon", "50"),
        *("--model.init_args.ppo.ppo_epochs", "2", "--model.init_args.ppo.minibatch_size", "2"),
        *("--model.init_args.ppo.use_score_norm", "false"),
    ),
    "rloo": _online("rloo", *_groups_of_two("rloo")),
    "grpo": _online("grpo", *_groups_of_two("grpo")),
}
SIZES = "--hidden-size 32 --layers 1 --heads 2 --feed-forward-size 64 --vocab-size 400"
EVERY_N_STEPS = 6
STEPS_AN_EPOCH = 48  # a multiple of the above: a checkpoint falls on an epoch's last batch, before its validation
STEPS_A_KILL = 20
PATIENCE = 600.0


@dataclass
class Result:
    """What a crash test found.

    Attributes:
        kills: Times that the run was killed.
        while_writing: Of these, how many left a checkpoint half written.
        repeated_steps: Steps that had been logged beyond the last checkpoint and were done again, over all kills.
        steps: Steps of the whole run.
        differences: What is not equal in the end.
    """

    task: str
    kills: int = 0
    while_writing: int = 0
    repeated_steps: int = 0
    steps: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not self.differences


class Process(Protocol):
    """What a run must answer to, however it was started."""

    @property
    def pid(self) -> int | None: ...

    def status(self) -> int | None: ...


class Command:
    """`python -m src` in a process group of its own."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        with log.open("ab") as stream:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "src", *words],
                cwd=ROOT,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def status(self) -> int | None:
        return self._popen.poll()


class Fork:
    """The same command in a fork of a process that has imported the libraries."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["src.commands.trainer", "torch", "peft"])
        self._process = context.Process(target=_run_command, args=(list(words), str(log)))
        self._process.start()
        self.pid = self._process.pid

    def status(self) -> int | None:
        return self._process.exitcode


def _run_command(words: list[str], log: str) -> None:
    os.setsid()
    os.chdir(ROOT)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from src.cli import main

    sys.exit(main(words))


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
        self._init()
        peaceful, killed = self.directory / "peaceful", self.directory / "killed"
        self._finish(self._start(peaceful))
        result = Result(self.arguments.task)
        chance = random.Random(self.arguments.seed)
        for number in range(self.arguments.kills):
            if not self._kill_once(killed, chance, in_writing=number % 3 == 2, result=result):
                break
        self._finish(self._start(killed))
        result.steps = self._epochs * STEPS_AN_EPOCH
        result.differences = compare_runs(peaceful, killed)
        return result

    def _init(self) -> None:
        words = ["init", "--architecture", TASKS[self.arguments.task][0], "--output", str(self._base), *SIZES.split()]
        self._finish(self._spawn(words, self.directory / "init.log"))

    @property
    def _base(self) -> Path:
        return self.directory / "base"

    @property
    def _epochs(self) -> int:
        return max(2, -(-self.arguments.kills * STEPS_A_KILL // STEPS_AN_EPOCH))

    def _words(self, root: Path) -> list[str]:
        given = self.arguments
        _, recipe, own = TASKS[given.task]
        batch_size = 4
        examples = STEPS_AN_EPOCH * batch_size * given.processes * given.accumulate
        if given.task in ("ppo", "rloo", "grpo"):
            examples //= ONLINE_STEPS
        words = [
            *("fit", "-c", str(ROOT / "configs" / recipe), "--model.init_args.model_name_or_path", str(self._base)),
            *("--data.init_args.path", str(ROOT / "src" / "datamodules" / "sample")),
            *("--data.init_args.train_split", f"train[:{examples}]", "--data.init_args.batch_size", str(batch_size)),
            *(
                "--data.init_args.validation_split",
                "validation[:4]",
                "--data.init_args.num_workers",
                str(given.workers),
            ),
            *("--data.init_args.max_source_length", "48", "--data.init_args.max_target_length", "16"),
            *(
                "--data.init_args.cache_dir",
                str(self.directory / "cache"),
                "--model.init_args.generation.max_new_tokens",
                "4",
            ),
            *("--trainer.accelerator", "cpu", "--trainer.devices", str(given.processes)),
            *("--trainer.max_epochs", str(self._epochs), "--trainer.log_every_n_steps", "1"),
            *("--trainer.logger", "RunLogger", "--trainer.logger.save_dir", str(root), "--trainer.logger.name", ""),
            *("--trainer.logger.flush_logs_every_n_steps", "1", "--trainer.default_root_dir", str(root)),
            *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
            *("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every_n_steps", str(EVERY_N_STEPS)),
            *("--ckpt_path", "last", *own),
        ]
        if given.accumulate > 1:
            words += ["--trainer.accumulate_grad_batches", str(given.accumulate)]
        if given.processes > 1:
            words += ["--trainer.strategy", "ddp"]
        if given.packed:
            words += ["--data.init_args.packing", "true", "--data.init_args.max_source_length", "24"]
        return words

    def _start(self, root: Path) -> Process:
        return self._spawn(self._words(root), root.with_suffix(".log"))

    def _spawn(self, words: list[str], log: Path) -> Process:
        return (Fork if self.arguments.fork else Command)(words, log)

    def _finish(self, process: Process) -> None:
        deadline = time.monotonic() + PATIENCE
        while (status := process.status()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if status != 0:
            _kill(process)
            raise SystemExit(f"a run ended with status {status}; see the logs in {self.directory}")

    def _kill_once(self, root: Path, chance: random.Random, *, in_writing: bool, result: Result) -> bool:
        """Start or resume the run and kill it; False when it came to its end first."""
        process = self._start(root)
        before = _signature(root)
        steps = chance.randrange(int(1.5 * STEPS_A_KILL))
        delay = chance.uniform(0, 0.002 if in_writing else 0.1)
        moments = _watch(process, root)
        changes = 0
        while changes <= steps or in_writing:
            moment = next(moments, None)
            if moment is None:
                return False
            changes += moment != before
            before = moment
            if changes > steps and in_writing and _half_written(root):
                break
        time.sleep(delay)
        _kill(process)
        result.kills += 1
        result.while_writing += bool(_half_written(root))
        whole = [file for file in checkpoints_of(root) if is_whole(file)]
        result.repeated_steps += repeated_steps(whole[-1]) if whole else 0
        return True


def _watch(process: Process, root: Path) -> Iterator[tuple[int, int]]:
    """The metric log's size and time, again and again while the run lasts."""
    deadline = time.monotonic() + PATIENCE
    while process.status() is None:
        if time.monotonic() > deadline:
            _kill(process)
            raise SystemExit(f"a run made no step in {PATIENCE:.0f} seconds; see {root.with_suffix('.log')}")
        yield _signature(root)
        time.sleep(0.0005)


def _signature(root: Path) -> tuple[int, int]:
    for file in sorted(root.glob("version_*/metrics.csv"), key=version_of, reverse=True):
        try:
            status = file.stat()
        except FileNotFoundError:  # replaced this very moment
            continue
        return status.st_size, status.st_mtime_ns
    return 0, 0


def _half_written(root: Path) -> list[Path]:
    return list(root.glob("version_*/checkpoints/.*.tmp"))


def _kill(process: Process) -> None:
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    while process.status() is None:
        time.sleep(0.001)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True, help="what is trained")
    parser.add_argument("--kills", type=int, default=5, help="how often (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches (0)")
    parser.add_argument("--accumulate", type=int, default=1, help="batches a step; for PPO, minibatches an update (1)")
    parser.add_argument("--processes", type=int, default=1, help="DDP over gloo when more than 1 (1)")
    parser.add_argument("--packed", action="store_true", help="several examples in a row (causal)")
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
    if min(given.kills, given.processes, given.accumulate) < 1 or given.workers < 0:
        parser.error("--kills, --processes and --accumulate must be positive, --workers not negative")
    return given


def main(words: Sequence[str] | None = None) -> int:
    given = parse(words)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(prefix="parley-crash-") as temporary:
        directory = given.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        result = CrashTest(given, directory.resolve()).run()
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
