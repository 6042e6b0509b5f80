"""What W&B had not kept when a run was killed is sent again, and nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from src.callbacks import WandbRun
from src.callbacks.wandb_files import rows_of, trim
from tests.callbacks.test_wandb_run import history, records, run_ids

ROOT = Path(__file__).resolve().parents[2]
ROWS = 40
KILLER = """
import os, signal, sys
from pathlib import Path
from tests.callbacks.test_wandb_kills import log_rows

directory, last, checkpoint, how = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
log_rows(directory, last, checkpoint)
(os.killpg if how == "group" else os.kill)(os.getpid(), signal.SIGKILL)
"""


def log_rows(directory: Path, last: int, checkpoint: int) -> WandbRun:
    """Log rows from the checkpoint on, and write another."""
    saved = directory / "state.json"
    state = json.loads(saved.read_text()) if saved.is_file() else {"id": "abcd1234", "rows": 0}
    logger = WandbRun(save_dir=str(directory), id="abcd1234", offline=True)
    logger.continue_run(state)
    for number in range(state["rows"], last):
        if number % 7 == 3:
            logger.log_table("samples", ["number"], [[number]], step=number)
        else:
            logger.log_metrics({"loss": number / 3, "text" * 400: 1.0}, step=number)
        if number + 1 == checkpoint:
            saved.write_text(json.dumps(logger.resume_state()))
    return logger


def log_and_die(directory: Path, last: int, checkpoint: int, how: str) -> int:
    """The same, in a process that is killed at its last row."""
    command = [sys.executable, "-c", KILLER, str(directory), str(last), str(checkpoint), how]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, timeout=300, start_new_session=True, check=False).returncode


def log_and_finish(directory: Path, last: int) -> None:
    """The same, in this process, which ends in peace."""
    import wandb

    log_rows(directory, last, last).experiment.finish()
    wandb.teardown()


@pytest.fixture(autouse=True)
def _wandb_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")  # Lightning sets it and leaves it


def steps(directory: Path) -> list[int]:
    return [row["_step"] for row in history(directory)]


@pytest.mark.slow
def test_all_files_together_hold_every_row_once(tmp_path):
    assert log_and_die(tmp_path, 12, 10, "group") == -signal.SIGKILL
    assert len(steps(tmp_path)) < 10  # of those before the checkpoint: W&B had them in memory
    assert log_and_die(tmp_path, 36, 20, "alone") == -signal.SIGKILL
    assert 20 < len(steps(tmp_path)) < 36  # more than the checkpoint knows of, and they come again
    log_and_finish(tmp_path, ROWS)
    assert steps(tmp_path) == list(range(ROWS))
    for number, row in enumerate(history(tmp_path)):
        assert row["trainer/global_step"] == number
        assert ("samples" in str(row)) == (number % 7 == 3)
        assert row.get("loss", number / 3) == number / 3
    assert run_ids(tmp_path) == {"abcd1234"}
    tables = sorted(tmp_path.glob("wandb/*/files/media/table/*.json"), key=lambda file: file.stat().st_mtime)
    assert {json.loads(file.read_text())["data"][0][0] for file in tables} == {3, 10, 17, 24, 31, 38}


def last_summary(directory: Path) -> dict[str, Any]:
    summary = {}
    for record in records(max(directory.glob("wandb/offline-run-*/run-*.wandb"))):
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return summary


@pytest.mark.slow
def test_the_summary_knows_what_only_an_earlier_process_logged(tmp_path):
    log_and_finish(tmp_path, ROWS - 1)
    log_and_finish(tmp_path, ROWS)  # one row more, of a loss
    summary = last_summary(tmp_path)
    assert summary["loss"] == (ROWS - 1) / 3
    assert summary["_step"] == ROWS - 1
    assert any(name.startswith("samples") for name in summary)


def test_a_file_is_read_up_to_where_it_was_cut(tmp_path):
    log_and_finish(tmp_path, 30)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    whole, data = list(rows_of(file)), file.read_bytes()
    assert [row["_step"] for row in whole] == list(range(30))
    assert [row.get("loss") for row in whole] == [row.get("loss") for row in history(tmp_path)]
    cut, seen = tmp_path / "cut.wandb", set()
    for length in [*range(100), *range(100, len(data), 997), 32768, 65536]:
        cut.write_bytes(data[:length])
        rows = list(rows_of(cut))
        assert rows == whole[: len(rows)]
        seen.add(len(rows))
    assert len(seen) > 20
    cut.write_bytes(data[:40000] + bytes([data[40000] ^ 1]) + data[40001:])
    assert list(rows_of(cut)) == whole[: len(list(rows_of(cut)))]


def test_what_a_killed_process_left_is_made_fit_for_wandb_sync(tmp_path):
    """`wandb sync` stops at a record that is not whole, and at a file without any, and leaves the run's later files."""
    log_and_finish(tmp_path, 30)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    rows, data = list(rows_of(file)), file.read_bytes()
    file.write_bytes(data[:32768])
    empty = file.parent.with_name("offline-run-20000101_000000-abcd1234") / file.name
    empty.parent.mkdir()
    empty.write_bytes(data[:7])
    log_and_finish(tmp_path, ROWS)
    kept = file.read_bytes()
    assert 0 < len(kept) < 32768
    assert data.startswith(kept)
    assert 0 < len(list(rows_of(file))) < len(rows)
    trim(file)
    assert file.read_bytes() == kept
    assert not empty.exists()
    assert steps(tmp_path) == list(range(ROWS))  # those that were cut off are sent again


class Server:
    """A run as `wandb.init(resume="allow")` returns it of a server that has so many rows already."""

    offline, disabled = False, False

    def __init__(self, rows: int) -> None:
        self.starting_step = self.step = rows
        self.rows: dict[int, dict[str, Any]] = {}

    def log(self, row: dict[str, Any], step: int | None = None) -> None:
        assert step is None or step >= self.step, "W&B drops what goes back"
        self.step = self.step if step is None else step
        if row:
            self.rows[self.step] = row
            self.step += 1

    def define_metric(self, *_: Any, **__: Any) -> None:
        """Of the x-axis."""


@pytest.mark.parametrize(("checkpoint", "uploaded"), [(6, 4), (6, 6), (6, 9), (6, 0)])
def test_online_the_server_says_what_it_has(tmp_path, monkeypatch, checkpoint, uploaded):
    """Online itself cannot be tried here: the run is made up, and reads as W&B documents it."""

    def logger(server: Server) -> WandbRun:
        made = WandbRun(save_dir=str(tmp_path), id="abcd1234")
        monkeypatch.setattr("wandb.init", lambda **_: server)
        monkeypatch.setattr("src.callbacks.wandb_logger._why_offline", lambda: None)
        return made

    killed = logger(Server(0))
    for number in range(10):
        if number == checkpoint:
            state = killed.resume_state()
        killed.log_metrics({"loss": number / 3}, step=number)
    server = Server(uploaded)
    resumed = logger(server)
    resumed.continue_run(state)
    for number in range(checkpoint, 12):
        resumed.log_metrics({"loss": number / 3}, step=number)
    assert sorted(server.rows) == list(range(uploaded, 12))
    for number, row in server.rows.items():
        assert row == {"loss": number / 3, "trainer/global_step": number}
