"""Processes that are killed, stopped, and continued on another number of them: the real command."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.crash_test import crash
from src.callbacks.storage import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--task seq2seq",
        "--task causal --packed",
        "--task causal --compiled",
        "--task seq2seq --streaming",
        "--task ppo",
        "--task grpo --elastic 1,2,1",
        "--task reward",
        "--task conversation",
    ],
)
def test_killed_and_resumed(words):
    """A short version; `docs/resuming.md` records longer ones, also with workers and on two processes."""
    _, result = crash([*words.split(), "--kills", "2", "--fork"])
    assert result.kills == 2
    assert result.differences == []


class Training:
    """`python -m src fit` on tiny things, in the background."""

    def __init__(self, root: Path, base: Path, sample: Path, *more: str) -> None:
        self.root = root
        self.words = [
            *(sys.executable, "-m", "src", "fit", "-c", str(ROOT / "configs" / "dialogsum_seq2seq.yaml")),
            *("--model.init_args.model_name_or_path", str(base), "--data.init_args.path", str(sample)),
            *("--data.init_args.validation_split", "validation[:4]", "--data.init_args.max_source_length", "48"),
            *("--model.init_args.generation.max_new_tokens", "2", "--model.init_args.optimizer.init_args.lr", "0.01"),
            *("--trainer.accelerator", "cpu", "--trainer.num_sanity_val_steps", "0"),
            *("--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"),
            *("--trainer.logger", "RunLogger", "--trainer.logger.save_dir", str(root), "--trainer.logger.name", ""),
            *("--trainer.logger.flush_logs_every_n_steps", "1", "--trainer.default_root_dir", str(root)),
            *("--ckpt_path", "last", *more),
        ]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.words,
            cwd=ROOT,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def run(self, status: int = 0) -> None:
        with self.start() as process:
            err = process.communicate(timeout=300)[1]
        assert process.returncode == status, err[-3000:]

    def wait_for_step(self, process: subprocess.Popen[str], step: int) -> None:
        deadline = time.monotonic() + 200
        while len(self.losses()) < step:
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def losses(self) -> list[float]:
        file = self.root / "version_0" / "metrics.csv"
        if not file.is_file():
            return []
        with file.open() as stream:
            return [float(row["train/loss"]) for row in csv.DictReader(stream) if row.get("train/loss")]

    def newest(self) -> Path:
        return max((self.root / "version_0" / "checkpoints").glob("step=*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_from_outside(tmp_path, tiny_base, sample, number, status):
    training = Training(tmp_path, tiny_base("t5"), sample, "--trainer.max_epochs", "50")
    process = training.start()
    training.wait_for_step(process, 3)
    sent = time.monotonic()
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == status
    assert time.monotonic() - sent < 30
    assert err.strip().splitlines()[-1].endswith(f"go on with --ckpt_path {training.newest()}")


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(tmp_path, tiny_base, sample):
    training = Training(tmp_path, tiny_base("t5"), sample, "--trainer.max_epochs", "50", *DDP)
    process = training.start()
    training.wait_for_step(process, 3)
    others = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    ranks = [int(pid) for pid in others.stdout.split() if b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes()]
    assert len(ranks) == 1
    os.kill(ranks[0], signal.SIGTERM)  # the one that the launcher started
    err = process.communicate(timeout=90)[1]
    assert process.returncode == 143
    assert err.count("stopped by SIGTERM at step") == 1
    deadline = time.monotonic() + 30
    while is_running(ranks[0]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    checkpoint = read_checkpoint(training.newest())
    assert len(checkpoint["callbacks"]["ExactResume"]["rng"]) == 2


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


WATCH = """
import os
import signal
from lightning.pytorch import Callback

class Watch(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        rows = [index for index, filler in zip(batch["index"], batch["is_filler"]) if not filler]
        with open(f"{os.environ['WATCHED']}-{trainer.global_rank}", "a") as stream:
            stream.write(f"{trainer.global_step} {rows}\\n")
        if trainer.global_step == int(os.environ["STOP_AT"]) and trainer.is_global_zero:
            os.environ["STOP_AT"] = "-1"
            os.kill(os.getpid(), signal.SIGTERM)
"""
KINDS = {
    "whole": ["--data.init_args.batch_size", "4", "--trainer.devices", "1"],
    "accumulated": [*("--data.init_args.batch_size", "2", "--trainer.devices", "1"),
                    *("--trainer.accumulate_grad_batches", "2")],
    "two": ["--data.init_args.batch_size", "2", *DDP],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "more"),
    [
        ("whole", "two", ()),
        ("two", "accumulated", ()),
        ("two", "whole", ("--data.init_args.streaming", "true", "--data.init_args.shuffle_buffer", "12")),
    ],
)
def test_continued_on_another_number_of_processes(tmp_path, tiny_base, sample, monkeypatch, first, second, more):
    """A global batch of 4, however it is dealt: the same examples, step by step, and the losses of one process."""
    (tmp_path / "watch.py").write_text(WATCH)
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", str(tmp_path))

    def train(root: str, kind: str, stop_at: int = -1) -> Training:
        monkeypatch.setitem(ENVIRONMENT, "STOP_AT", str(stop_at))
        monkeypatch.setitem(ENVIRONMENT, "WATCHED", str(tmp_path / f"{root}.seen"))
        words = ["--data.init_args.train_split", "train[:30]", "--model.init_args.dropout", "0.0"]
        words += ["--trainer.max_epochs", "2", "--trainer.callbacks+=watch.Watch"]
        training = Training(tmp_path / root, tiny_base("t5"), sample, *words, *KINDS[kind], *more)
        training.run(0 if stop_at < 0 else 143)
        return training

    def seen(root: str) -> dict[int, list[int]]:
        steps: dict[int, list[int]] = {}
        for file in tmp_path.glob(f"{root}.seen-*"):
            for line in file.read_text().splitlines():
                step, rows = line.split(" ", 1)
                steps[int(step)] = sorted(steps.get(int(step), []) + json.loads(rows))
        return steps

    peaceful = train("peaceful", "whole")
    assert read_checkpoint(train("cut", first, stop_at=4).newest())["global_step"] == 5
    continued = train("cut", second)
    assert seen("cut") == seen("peaceful")
    for epoch in (range(8), range(8, 16)):
        assert sorted(row for step in epoch for row in seen("cut")[step]) == list(range(30))
    if "accumulated" not in (first, second):  # which weighs its shares alike, whatever their number of tokens
        assert continued.losses() == pytest.approx(peaceful.losses(), abs=2e-5)
        assert len(peaceful.losses()) == 16
