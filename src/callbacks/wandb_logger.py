"""Weights & Biases: one run, however often it is stopped and resumed."""

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
RUN_ID = re.compile(r"(?!\.{1,2}$)[^/\\#?%:\x00-\x1f]{1,128}")  # as W&B has it, and the name of a directory here
OF_WANDB = ("_step", "_runtime", "_timestamp", "_wandb")  # what it adds to a row or a summary itself


class WandbRun(WandbLogger):
    """Lightning's W&B logger, which goes offline by itself and continues the run that a checkpoint names.

    Without an API key or a network it logs offline, says so once, and never asks for anything; `wandb sync` uploads
    later. A resumed run keeps its id and goes on with W&B's steps. W&B keeps rows in memory, which a kill takes with
    it: so each is written to `wandb-rows.jsonl` as well, and what W&B's files do not have, or online its server, is
    sent again. What they have beyond the checkpoint is computed again, to the same values, and not sent twice.

    Args:
        project: W&B's project.
        save_dir: Where W&B keeps its files.
        name: What W&B calls the run; W&B makes a name up when left out.
        id: The run's id; that of the environment (`WANDB_RUN_ID`, which a sweep's agent sets), else made up, when left
            out.
        offline: Log offline in any case.
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
        self._wandb_init.pop("anonymous", None)  # Lightning passes it on, and W&B says that it does nothing
        self.uploads_model = log_model
        self._continued = False
        self._rows = 0  # of this run as far as it has come
        self._held = 0  # rows that W&B has already and that are about to be computed again

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
        """Go on where W&B's rows end, with those that a killed process had logged and W&B never got."""
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
        run.log({}, step=step)  # what is logged from here on counts from there
        for row in lost:
            run.log({}, step=row.place)
            super().log_metrics(_decoded(row.metrics), row.step)
        if lost:
            log.info("%d rows that W&B had not kept when the run was killed are sent again.", len(lost))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send a row, unless W&B has it from a process before this one."""
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
        """What a checkpoint keeps: the run, and how many rows it has by now."""
        return {"id": self.version, "rows": self._rows}

    def continue_run(self, state: dict[str, Any]) -> None:
        """Become the run that a checkpoint names; before anything is logged."""
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
        """Upload a checkpoint as an artifact, where that was asked for."""
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
    """A table as what it is made of, and a number as Python's; other media are not kept."""
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
    """Why W&B cannot be reached; None when it can, or when the user has settled it by WANDB_MODE."""
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
