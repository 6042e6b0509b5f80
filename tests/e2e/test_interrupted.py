"""Cut off or told to stop, next to validations and ends of epochs, a run ends as the one that was left in peace."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from src.callbacks import StopOnSignal
from src.modules import Seq2SeqModule

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("compare_runs", ROOT / "scripts" / "compare_runs.py")
assert spec is not None
assert spec.loader is not None
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)

PLATEAU = ["--model.init_args.lr_scheduler", "lightning.pytorch.cli.ReduceLROnPlateau"]
PLATEAU += ["--model.init_args.lr_scheduler.monitor", "val/rouge1", "--model.init_args.lr_scheduler.patience", "0"]
SAMPLING = ["--model.init_args.generation.do_sample", "true"]  # validation draws from the global generator
WITHIN = ["--trainer.val_check_interval", "2"]
SELDOM = ["--trainer.check_val_every_n_epoch", "2"]


class Cut(Exception):
    """The power goes."""


@pytest.fixture
def words(tiny_base, sample) -> list[str]:
    return [
        *("fit", "-c", str(ROOT / "configs/dialogsum_seq2seq.yaml"), "--data.init_args.path", str(sample)),
        *("--model.init_args.model_name_or_path", str(tiny_base("t5")), "--data.init_args.max_source_length", "48"),
        *("--data.init_args.train_split", "train[:16]", "--data.init_args.batch_size", "4"),  # 4 steps an epoch
        *("--data.init_args.validation_split", "validation[:4]", "--model.init_args.generation.max_new_tokens", "4"),
        *("--model.init_args.optimizer.init_args.lr", "0.01", "--trainer.accelerator", "cpu"),
        *("--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "1", "--trainer.num_sanity_val_steps", "0"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every_n_steps", "2"),
    ]


@pytest.fixture
def strike(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Does something at the so-manieth call of a Module's method in this process."""

    def arm(method: str, number: int, blow: Callable[[], None]) -> None:
        whole, calls = getattr(Seq2SeqModule, method), {"number": 0}

        def struck(self, *args, **kwargs):
            calls["number"] += 1
            if calls["number"] == number:
                blow()
            return whole(self, *args, **kwargs)

        monkeypatch.setattr(Seq2SeqModule, method, struck)

    return arm


def cut() -> None:
    raise Cut


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory) -> Callable[..., Path]:
    """The run that nobody disturbs, once for each set of options."""
    root = tmp_path_factory.mktemp("peaceful")
    done: dict[tuple[str, ...], Path] = {}

    def run(parley, *words: str) -> Path:
        if words not in done:
            done[words] = root / str(len(done))
            assert parley(*words, "--trainer.default_root_dir", done[words]) == 0
        return done[words]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "method", "number"),
    [
        (SAMPLING, "validation_step", 1),  # at the end of an epoch, whose last step is checkpointed
        ([*PLATEAU, *SAMPLING], "training_step", 5),  # just after an epoch's checkpoint, before the next one's
        ([*WITHIN, *SAMPLING], "validation_step", 3),  # within an epoch, where a checkpoint falls on it
        (SELDOM, "on_train_epoch_end", 1),  # at the end of an epoch without validation
    ],
    ids=["validation", "after-the-epoch", "validation-within-epoch", "epoch-without-validation"],
)
def test_cut_off(parley, peaceful, tmp_path, words, strike, monkeypatch, more, method, number):
    if method not in vars(Seq2SeqModule):
        monkeypatch.setattr(Seq2SeqModule, method, getattr(Seq2SeqModule, method), raising=False)
    expected = peaceful(parley, *words, *more)
    with monkeypatch.context():
        strike(method, number, cut)
        with pytest.raises(Cut):
            parley(*words, *more, "--ckpt_path", "last")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert parley(*words, *more, "--ckpt_path", "last") == 0
    assert compare.compare_runs(expected, tmp_path / "runs") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "method", "which", "step"),
    [
        (signal.SIGTERM, "training_step", 3, 3),
        (signal.SIGINT, "training_step", 4, 4),  # a validation and the end of the epoch would follow
        (signal.SIGTERM, "validation_step", 1, 4),
        (signal.SIGUSR1, "training_step", 6, 6),
    ],
    ids=["step", "last-step-of-the-epoch", "validation", "usr1"],
)
def test_told_to_stop(parley, peaceful, tmp_path, words, strike, monkeypatch, capfd, number, method, which, step):
    expected = peaceful(parley, *words, *SAMPLING)
    capfd.readouterr()
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    with monkeypatch.context():
        strike(method, which, lambda: os.kill(os.getpid(), number))
        assert parley(*words, *SAMPLING) == 128 + number
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert {one: signal.getsignal(one) for one in before} == before
    checkpoint = Path("runs/version_0/checkpoints") / f"step={step:07d}.ckpt"
    line = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("parley fit:"))
    name = signal.Signals(number).name
    assert line == f"parley fit: stopped by {name} at step {step}; go on with --ckpt_path {checkpoint}"
    assert parley(*words, *SAMPLING, "--ckpt_path", str(checkpoint)) == 0
    assert compare.compare_runs(expected, tmp_path / "runs") == []


@pytest.mark.parametrize(
    ("number", "answer", "said"),
    [
        (signal.SIGUSR1, "exit 0", "(job 4711 requeued)"),
        (signal.SIGUSR1, "echo 'slurm is asleep' >&2; exit 1", "(job 4711 was not requeued: slurm is asleep)"),
        (signal.SIGTERM, "exit 0", None),
    ],
)
def test_slurm(parley, tmp_path, words, strike, monkeypatch, capfd, number, answer, said):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n{answer}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    strike("training_step", 1, lambda: os.kill(os.getpid(), number))
    assert parley(*words) == 128 + number
    err = capfd.readouterr().err
    if said is None:  # scancel sends SIGTERM: whoever cancels a job does not want it back
        assert not (tmp_path / "asked").exists()
        assert "requeued" not in err
    else:
        assert (tmp_path / "asked").read_text() == "requeue 4711\n"
        assert said in err


def test_a_second_signal_ends_at_once(monkeypatch):
    left = []
    clock = iter([100.0, 100.2, 102.0])
    monkeypatch.setattr("src.callbacks.stop_signals.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("src.callbacks.stop_signals.os._exit", left.append)
    callback = StopOnSignal()
    for expected in ([], [], [143]):  # the same signal delivered twice is one
        callback._note(signal.SIGTERM, None)
        assert left == expected
