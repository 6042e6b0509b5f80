"""A short run of the command with several processes, for tests that start them in their own ways."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from src.callbacks.storage import read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "src" / "datamodules" / "sample"
EVERY_N_STEPS = 6


def words_of(base: Path, cache: Path, steps: int, *, batch_size: int = 2) -> list[str]:
    """Settings of a run without its devices: a step's loss each, and checkpoints between.

    Args:
        base: A T5.
        cache: Of tokens.
        steps: How many the optimiser makes.
        batch_size: Of each process.
    """
    return [
        *("-c", str(ROOT / "configs" / "dialogsum_seq2seq.yaml"), "--model.init_args.model_name_or_path", str(base)),
        *("--data.init_args.path", str(SAMPLE), "--data.init_args.batch_size", str(batch_size)),
        *("--data.init_args.validation_split", "validation[:4]", "--data.init_args.cache_dir", str(cache)),
        *("--data.init_args.max_source_length", "48", "--data.init_args.max_target_length", "16"),
        *("--model.init_args.optimizer.init_args.lr", "0.01", "--model.init_args.generation.max_new_tokens", "4"),
        *("--trainer.accelerator", "cpu", "--trainer.max_steps", str(steps), "--trainer.log_every_n_steps", "1"),
        *("--trainer.val_check_interval", "10", "--trainer.check_val_every_n_epoch", "null"),
        *("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every_n_steps", str(EVERY_N_STEPS)),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    ]


def rows_of(root: Path) -> list[dict[str, str]]:
    """The metric log of the only run under a directory, but for the speeds."""
    [file] = root.glob("version_*/metrics.csv")
    with file.open(encoding="utf-8") as stream:
        return [
            {name: value for name, value in row.items() if value and "per_second" not in name}
            for row in csv.DictReader(stream)
        ]


def newest(root: Path) -> Path:
    """The last checkpoint of the runs under a directory."""
    return max(root.glob("version_*/checkpoints/step=*.ckpt"), key=lambda file: file.stat().st_mtime_ns)


def same_to_the_bit(mine: Path, other: Path) -> None:
    """Weights and the optimiser's moments of two checkpoints."""
    ours, theirs = read_checkpoint(mine), read_checkpoint(other)
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, tensor in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], tensor), name
    (first,), (second,) = ours["optimizer_states"], theirs["optimizer_states"]
    for number, state in second["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(first["state"][number][name]), torch.as_tensor(value)), name
