"""Runs in shards, stopped and gone on with on other processes: one line of losses, and checkpoints for everybody."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from scripts.crash_tasks import TASKS, Dealing, words_of
from src.callbacks.storage import is_whole, read_checkpoint
from src.cli import main
from tests.forks import in_processes

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8
CHAIN = [("sharded", 2), ("ddp", 1), ("sharded-checkpoints", 2), ("ddp", 2)]


def fit(task: str, base: Path, root: Path, strategy: str, processes: int, steps: int, *more: str) -> None:
    """Train up to so many steps, from where the newest checkpoint is."""
    words = words_of(
        TASKS[task], Dealing(processes, 2, 1), base=base, cache=root / "cache", root=root, epochs=9, strategy=strategy
    )
    kept = words.index("--trainer.logger+=WandbRun")
    words = [*words[:kept], *words[kept + 5 :], *TASKS[task].certain, "--trainer.max_steps", str(steps)]
    words += ["--model.init_args.lr_scheduler", "null"]  # which would end with the part that is trained
    words += ["--trainer.val_check_interval", "2", "--trainer.gradient_clip_val", "0.5"]
    words += more
    run(words, processes)


def run(words: list[str], processes: int) -> None:
    """One process is this one; two are of their own."""
    assert (in_processes(processes, main, words) if processes > 1 else [main(words)]) == [0] * processes


def column(root: Path, name: str) -> list[float]:
    rows: dict[int, float] = {}
    for file in sorted(root.glob("version_*/metrics.csv")):
        with file.open() as stream:
            rows |= {int(row["step"]): float(row[name]) for row in csv.DictReader(stream) if row.get(name)}
    return [rows[step] for step in sorted(rows)]


def newest(root: Path) -> Path:
    return max(root.glob("version_*/checkpoints/step=*.ckpt"), key=lambda file: file.stat().st_mtime_ns)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["seq2seq", "lora"])
def test_a_chain_of_shards_copies_and_one_process(tiny_base, tmp_path, task):
    """Two steps each; the losses, the weights and the optimiser's moments are those of one process that did all."""
    base, alone, chain = tiny_base("t5"), tmp_path / "alone", tmp_path / "chain"
    fit(task, base, alone, "ddp", 1, STEPS)
    for place, (strategy, processes) in enumerate(CHAIN):
        fit(task, base, chain, strategy, processes, 2 * place + 2)
        assert is_whole(newest(chain))
        assert newest(chain).is_dir() == (strategy == "sharded-checkpoints")
        words = ["--checkpoint", str(newest(chain)), "--output", str(tmp_path / f"out-{place}")]
        assert main(["export", *words]) == 0
    losses = column(alone, "train/loss")
    assert len(losses) == STEPS
    assert column(chain, "train/loss") == pytest.approx(losses, abs=1e-5)
    for name in ("val/loss", "val/rouge1"):
        assert column(chain, name) == pytest.approx(column(alone, name), abs=1e-5)

    same_state(newest(chain), newest(alone))

    for place in range(len(CHAIN)):
        files = {file.name for file in (tmp_path / f"out-{place}").iterdir()}
        assert files & {"model.safetensors", "adapter_model.safetensors"}


def same_state(mine: Path, other: Path) -> None:
    """Weights and the optimiser's moments of two checkpoints, but for rounding."""
    ours, theirs = read_checkpoint(mine), read_checkpoint(other)
    assert ours.keys() == theirs.keys()
    assert list(ours["state_dict"]) == list(theirs["state_dict"])
    for name, tensor in theirs["state_dict"].items():  # AdamW makes a step of a gradient that is rounding alone
        torch.testing.assert_close(ours["state_dict"][name], tensor, atol=1e-3, rtol=1e-3, msg=name)
    (first,), (second,) = ours["optimizer_states"], theirs["optimizer_states"]
    assert first["param_groups"] == second["param_groups"]
    assert first["state"].keys() == second["state"].keys()
    for number, state in second["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(first["state"][number][name], value, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_two_copies_of_one_shard_are_ddp_s(tiny_base, tmp_path):
    """Also when they go on from what they have written; of their shards one copy is written."""
    base, ddp, copies = tiny_base("t5"), tmp_path / "ddp", tmp_path / "copies"
    fit("seq2seq", base, ddp, "ddp", 2, 4)
    for steps in (2, 4):
        fit("seq2seq", base, copies, "sharded-checkpoints", 2, steps, "--trainer.strategy.init_args.replicas", "2")
        files = {file.name: file.stat().st_size for file in newest(copies).iterdir()}
        assert files["shard-00000.pt"] > 50 * files["shard-00001.pt"]
    assert len(set(column(ddp, "train/loss"))) == 4
    for name in ("train/loss", "val/loss", "val/rouge1"):
        assert column(copies, name) == pytest.approx(column(ddp, name), abs=1e-5)
    same_state(newest(copies), newest(ddp))


@pytest.mark.slow
def test_every_row_is_answered_once_in_shards(tiny_base, sample, tmp_path):
    """Thirteen rows on two processes: the predictions of one."""
    words = [
        *("test", "-c", str(ROOT / "configs/dialogsum_seq2seq.yaml")),
        *("--model.init_args.model_name_or_path", str(tiny_base("t5")), "--data.init_args.path", str(sample)),
        *("--data.init_args.test_split", "test[:13]", "--data.init_args.batch_size", "3"),
        *("--model.init_args.generation.max_new_tokens", "12", "--trainer.accelerator", "cpu"),
        *("--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"),
    ]
    shards = ["-c", str(ROOT / "configs/trainer/fsdp.yaml")]
    for processes in (1, 2):
        root = str(tmp_path / str(processes))
        given = [*words[:3], *shards, *words[3:]] if processes > 1 else words
        run([*given, "--trainer.devices", str(processes), "--trainer.default_root_dir", root], processes)
    one, two = (list(tmp_path.glob(f"{number}/version_0/predictions.csv")) for number in (1, 2))
    assert one[0].read_text() == two[0].read_text()
    assert len(one[0].read_text().splitlines()) > 13
