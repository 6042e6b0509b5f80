"""Every private part of Lightning that Parley touches is there, and touched in one file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

SRC = Path(__file__).resolve().parents[1] / "src"

# The symbol, from a Trainer that has fitted a Module, and what broke while Parley did without it.
PRIVATE = {
    "lightning_module._trainer": "a Module cannot ask whether it has a Trainer: the public property raises",
    "fit_loop._should_accumulate": "a checkpoint between accumulated batches: their gradients are in none",
    "fit_loop._restarting": "ReduceLROnPlateau misses the end of a resumed run's first epoch",
    "fit_loop._data_fetcher": "a checkpoint before a validation is taken for one after it, and the validation skipped",
    "fit_loop._combined_loader": "the loader of a resumed run starts over where a schedule asked for its length",
    "fit_loop._combined_loader._load_state_dicts": "as above",
    "fit_loop._combined_loader_states_to_load": "as above",
    "fit_loop.epoch_progress": "a schedule that counts epochs is placed an epoch off when it is exchanged",
    "fit_loop.epoch_loop.total_batch_idx": "two checkpoints of one optimiser step are taken for one",
    "fit_loop.epoch_loop._batches_that_stepped": "tables stand at another step than their metrics",
    "fit_loop.epoch_loop._num_ready_batches_reached": "an epoch that a checkpoint ends is not ended on resuming",
    "fit_loop.epoch_loop._should_check_val_fx": "a validation that was due at the checkpoint never comes",
    "fit_loop.epoch_loop.batch_progress": "a resumed run repeats or skips the batch of its checkpoint",
    "fit_loop.epoch_loop.update_lr_schedulers": "schedules that count epochs miss one at a checkpoint of its end",
    "fit_loop.epoch_loop.val_loop._restart_stage": "a validation that was broken off is not begun again",
    "fit_loop.epoch_loop.val_loop.batch_progress": "as above",
    "fit_loop._data_source": "what the reference says is made after a checkpoint's weights have taken its place",
    "fit_loop.epoch_loop.val_loop._data_source": "as above",
    "validate_loop._data_source": "as above",
    "test_loop._data_source": "as above",
    "_logger_connector._callback_metrics": "a schedule that watches a metric has none to watch after resuming",
    "_logger_connector._first_loop_iter": "the step of a checkpoint is missing from a resumed run's log",
    "_logger_connector.should_update_logs": "as above",
    "_logger_connector.metrics": "as above",
    "_signal_connector.received_sigterm": "Lightning ends a run for a SIGTERM that is answered with a checkpoint",
    "_accelerator_connector.use_distributed_sampler": "Lightning deals batches that are dealt already",
}
# What subclasses of Lightning's override or read of themselves; where and why.
OVERRIDDEN = {
    (LightningCLI, "_instantiate_trainer"): "our callbacks and loggers are added to the ones that were asked for",
    (LightningCLI, "_parse_ckpt_path"): "a checkpoint's settings silently replace what was asked for",
    (LightningCLI, "_prepare_subcommand_parser"): "`--fresh_run`",
    (LightningCLI, "_dump_config"): "settings are compared with the checkpoint's",
    (LightningCLI, "_get"): "`--fresh_run`",
    (
        _SubprocessScriptLauncher,
        "_call_children_scripts",
    ): "Ctrl-C while processes start kills the run wordlessly",
}
TOUCHES = re.compile(
    r"\b_(?:trainer|logger_connector|signal_connector|accelerator_connector|should_accumulate|restarting|data_fetcher"
    r"|combined_loader|data_source|batches_that_stepped|num_ready_batches_reached|should_check_val_fx|restart_stage)\b"
    r"|\b(?:fit_loop|epoch_loop|val_loop)\."
)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A Trainer that has fitted a Module."""
    done = Trainer(
        default_root_dir=tmp_path_factory.mktemp("run"),
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    done.fit(BoringModel())
    return done


@pytest.mark.parametrize("symbol", PRIVATE)
def test_it_is_there(trainer: Trainer, symbol: str) -> None:
    found: Any = trainer
    *owners, last = symbol.split(".")
    for name in owners:
        found = getattr(found, name)
    assert last in dir(found), f"without {symbol}: {PRIVATE[symbol]}"


@pytest.mark.parametrize(("owner", "name"), OVERRIDDEN)
def test_what_is_overridden_is_there(owner: type, name: str) -> None:
    assert callable(getattr(owner, name)), OVERRIDDEN[owner, name]


def test_what_else_is_private_is_there(tmp_path: Path) -> None:
    assert RestartStage.RESTARTED_MID_EVALUATION
    logger = CSVLogger(tmp_path)
    assert logger._prefix == ""  # a resumed run's logger is made like the one that was asked for
    assert logger._flush_logs_every_n_steps == 100


def test_no_other_file_touches_it() -> None:
    touching = [
        f"{file.relative_to(SRC)}: {line.strip()}"
        for file in sorted(SRC.rglob("*.py"))
        if file.name != "internals.py"
        for line in file.read_text(encoding="utf-8").splitlines()
        if TOUCHES.search(line.replace("self._trainer", ""))
    ]
    assert touching == []
