"""Stores answers as they are generated, so that an interrupted command can be resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from src.errors import ParleyError
from src.inference.loading import FinishedModel
from src.models.fingerprint import fingerprint
from src.models.generation_options import GenerationOptions
from src.writing import adding_to, writing

log = logging.getLogger(__name__)


class AnswerJournal:
    """The file `OUTPUT.part`: a header line that identifies the job, then one line per batch of answers.

    Args:
        output: The final file of the answers; the journal lies beside it.
        finished: The model.
        prompts: The token ids of each prompt.
        options: How answers are decoded.
        *further: Whatever else the answers depend on.

    Raises:
        ParleyError: The file exists with answers of another model, prompts or options; or it cannot be written.
    """

    def __init__(
        self,
        output: Path,
        finished: FinishedModel,
        prompts: Sequence[list[int]],
        options: GenerationOptions,
        *further: object,
    ) -> None:
        self.file = output.with_name(f"{output.name}.part")
        self.answers: dict[int, list[str]] = {}
        model = [fingerprint(finished.model), str(next(finished.model.parameters()).dtype)]
        asked = json.dumps([model, prompts, asdict(options), *further], sort_keys=True, default=str)
        header = {"asked": hashlib.sha256(asked.encode()).hexdigest()}
        first, *lines = self._lines() or [header]
        if lines and first != header:
            raise ParleyError(
                f"{self.file} has answers of another model, other prompts or other options; delete it, or name another "
                "--output."
            )
        for line in lines:
            self.answers |= dict(zip(line["numbers"], line["answers"], strict=True))
        if not lines:
            self._write(header, "w")
        else:
            log.info("%d of %d prompts are answered in %s; going on.", len(self.answers), len(prompts), self.file)

    def add(self, numbers: Sequence[int], answers: Sequence[list[str]]) -> None:
        """Append a batch's answers.

        Args:
            numbers: The indices of the prompts.
            answers: The answers to each of them.

        Raises:
            ParleyError: The file cannot be written; its previous content stays.
        """
        self._write({"numbers": list(numbers), "answers": list(answers)}, "a")
        self.answers |= dict(zip(numbers, answers, strict=True))

    def finish(self) -> None:
        """Delete the journal, once the answers are in their final file."""
        self.file.unlink(missing_ok=True)

    def _write(self, line: dict[str, Any], mode: str) -> None:
        advice = "make room there and run the same command again, which goes on from what is written"
        with adding_to(self.file, advice), self.file.open(mode, encoding="utf-8", newline="") as stream:
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        """Its complete lines; an incomplete last line, which a kill may leave, is cut off."""
        if not self.file.is_file():
            return []
        data = self.file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with writing(self.file):
                os.truncate(self.file, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise ParleyError(f"{self.file} is damaged ({error}); delete it, or name another --output.") from error
