"""Weights & Biases logging that continues the same W&B run when training is resumed."""

from __future__ import annotations

import logging
import netrc
import os
import re
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import WandbLogger

from src.callbacks.row_journal import JournalRow, RowJournal
from src.callbacks.wandb_files import files_of, rows_on_disk, trim
from src.errors import ParleyError
from src.writing import writing

log = logging.getLogger(__name__)
RUN_ID = re.compile(r"(?!\.{1,2}$)[^/\\#?%:\x00-\x1f]{1,128}")  # W&B's rule, and a valid directory name
OF_WANDB = ("_step", "_runtime", "_timestamp", "_wandb")  # keys that W&B itself adds to a row or a summary


class WandbRun(WandbLogger):
    """Lightning's W&B logger, which goes offline by itself and continues the run that a checkpoint names.

    Without an API key or a network it logs offline, says so once, and never prompts; `wandb sync` uploads later. A
    resumed run keeps its id and continues W&B's steps. W&B keeps rows in memory and a kill loses them, so each row is
    also written to `wandb-rows.jsonl`, and rows missing from W&B's files (online: from its server) are sent again. Rows
    that W&B has from after the checkpoint are computed again, to the same values, and not sent twice.

    Args:
        project: W&B's project.
        save_dir: Where W&B keeps its files.
        name: What W&B calls the run; W&B makes a name up when left out.
        id: The run's id; that of the environment (`WANDB_RUN_ID`, which a sweep's agent sets), else made up, when left
            out.
        offline: Always log offline.
        log_model: Upload the final checkpoint as an artifact.
        **kwargs: For `wandb.init`, such as `entity`, `group` and `tags`.
    """

    def __init__(
        self,
        project: str = "parley",
        save_dir: str = "runs",
        name: str | None = None,
        id: str | None = None,
        offline: bool = False,
        log_model: bool = False,
        **kwargs: Any,
    ) -> None:
        id = id or os.environ.get("WANDB_RUN_ID") or None
        if id is not None and not RUN_ID.fullmatch(id):
            raise ParleyError(
                f"id is {id!r}; leave / \\ # ? % : out of a W&B run's id, and have 128 characters at most."
            )
        super().__init__(
            name=name, save_dir=save_dir, project=project, id=id or secrets.token_hex(4), offline=offline, **kwargs
        )
        self._wandb_init.pop("anonymous", None)  # Lightning passes it on, and W&B warns that it has no effect
        self.uploads_model = log_model
        self._continued = False
        self._rows = 0  # logged by this run up to its current step
        self._held = 0  # rows that W&B has already and that will be computed again

    @property
    def version(self) -> str:
        """The run's id."""
        return str(self._id)

    @property
    def experiment(self) -> Any:
        """W&B's own run, on rank 0."""
        if self._experiment is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            with writing(self._save_dir or "."):
                Path(self._save_dir or ".").mkdir(parents=True, exist_ok=True)
            reason = "as asked" if self._offline else _why_offline()
            if reason is not None and self._wandb_init.get("mode") != "offline":
                self._wandb_init["mode"] = "offline"
                log.info(
                    "W&B logs offline (%s); `wandb sync %s/wandb/offline-run-*` uploads it.", reason, self._save_dir
                )
            with writing(self._save_dir or "."):
                self._catch_up(super().experiment)
        return super().experiment

    def _catch_up(self, run: Any) -> None:
        """Continue after the last row that W&B has, first resending the rows that it lost when a process was killed."""
        if run.offline:
            own = Path(run.dir).parent
            for file in files_of(own.parent, self.version):
                if file.parent != own:
                    trim(file)
            rows = rows_on_disk(own.parent, self.version)
            step = rows[-1]["_step"] + 1 if rows else 0
            run.summary.update({name: row[name] for row in rows for name in row if name not in OF_WANDB})
        else:
            step = run.starting_step
        journal = self._journal.read() if self._continued else []
        held = [row for row in journal if row.place < step]
        lost = [row for row in journal if row.place >= step and row.number < self._rows]
        self._journal.keep([*held, *lost])
        self._held = sum(row.number >= self._rows for row in held)
        run.log({}, step=step)  # sets W&B's step for the next row
        for row in lost:
            run.log({}, step=row.place)
            super().log_metrics(_decoded(row.metrics), row.step)
        if lost:
            log.info("%d rows that W&B had not kept when the run was killed are sent again.", len(lost))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send a row, unless W&B has it already from before the run was resumed."""
        run = self.experiment
        if self._held:
            self._held -= 1
        else:
            self._journal.append(JournalRow(self._rows, run.step, step, dict(metrics)))
            super().log_metrics(metrics, step)
        self._rows += 1

    @property
    def _journal(self) -> RowJournal:
        return RowJournal(Path(self._save_dir or ".") / self.version / "wandb-rows.jsonl", _encoded)

    def resume_state(self) -> dict[str, Any]:
        """The state for a checkpoint: the run's id and the number of rows so far."""
        return {"id": self.version, "rows": self._rows}

    def continue_run(self, state: dict[str, Any]) -> None:
        """Take over the id and row count of a checkpoint's run; call it before anything is logged.

        Args:
            state: What `resume_state` returned.

        Raises:
            ParleyError: The checkpoint's id is not a valid W&B id.
        """
        if not RUN_ID.fullmatch(str(state["id"])):
            raise ParleyError(
                f"the checkpoint names a W&B run {state['id']!r}, which is no id of a run; --fresh_run true logs as a "
                "new one."
            )
        self._id = self._wandb_init["id"] = state["id"]
        self._rows = state["rows"]
        self._continued = True

    @rank_zero_only
    def log_checkpoint(self, path: Path) -> None:
        """Upload a checkpoint as an artifact, if `log_model` is set."""
        if not self.uploads_model:
            return
        import wandb

        artifact = wandb.Artifact(f"checkpoint-{self.version}", type="model", metadata={"file": path.name})
        if path.is_dir():
            artifact.add_dir(str(path), name=path.name)
        else:
            artifact.add_file(str(path))
        self.experiment.log_artifact(artifact)


def _encoded(value: Any) -> Any:
    """Make a value JSON-serialisable: a table as columns and data, a tensor as a number, other media as None."""
    import wandb

    if isinstance(value, wandb.Table):
        return {"columns": value.columns, "table": value.data}
    return value.item() if hasattr(value, "item") else None


def _decoded(metrics: dict[str, Any]) -> dict[str, Any]:
    import wandb

    return {
        name: wandb.Table(columns=value["columns"], data=value["table"]) if isinstance(value, dict) else value
        for name, value in metrics.items()
        if value is not None
    }


def _why_offline() -> str | None:
    """Why W&B cannot be reached; None when it can, or when the user has set WANDB_MODE."""
    import wandb

    if "WANDB_MODE" in os.environ:
        return None
    address = urlparse(str(wandb.setup().settings.base_url))
    host = address.hostname or ""
    if not (os.environ.get("WANDB_API_KEY") or _has_netrc_entry(host)):
        return "no API key"
    try:
        socket.create_connection((host, address.port or 443), timeout=3).close()
    except OSError:
        return f"{host} does not answer"
    return None


def _has_netrc_entry(host: str) -> bool:
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
