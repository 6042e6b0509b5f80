"""Votes from the page, stored as preference pairs for DPO and reward models."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from src.contracts import Turn
from src.datamodules.turns import parse_messages
from src.errors import ParleyError
from src.files import refuse_surrogates
from src.writing import adding_to, writing

log = logging.getLogger(__name__)

MOST_CHARACTERS = 200_000  # in a message or an answer
BLOCK = 65_536  # bytes read at a time
Said = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Name = Annotated[str, Field(max_length=1000)]


class _Closed(BaseModel):
    """Validates types strictly and refuses unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class VotedMessage(_Closed):
    """A message of the conversation that was answered."""

    role: Literal["system", "user", "assistant"]
    content: Said


class VotedOptions(_Closed):
    """The decoding options in an answer's request; every pair has all columns, null if not given."""

    preset: Name | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    stop: Annotated[list[Name], Field(max_length=16)] | None = None


class VotedAnswer(_Closed):
    """An answer with its model and decoding options."""

    text: Said
    model: Name
    options: VotedOptions = VotedOptions()


class Vote(_Closed):
    """`POST /votes`: two answers to one conversation, the better one first."""

    messages: Annotated[list[VotedMessage], Field(min_length=1, max_length=10_000)]
    chosen: VotedAnswer
    rejected: VotedAnswer

    def turns(self) -> tuple[Turn, ...]:
        """The conversation that both answer, after checking the vote.

        Raises:
            ParleyError: It does not end with the user's message, or the answers are empty or equal.
        """
        turns = parse_messages([message.model_dump() for message in self.messages], "messages")
        if turns[-1].role != "user":
            raise ParleyError("the last message must be the user's; it is what both answers answer.")
        chosen, rejected = self.chosen.text.strip(), self.rejected.text.strip()
        if not (chosen and rejected):
            raise ParleyError("an answer is empty; vote between two that say something.")
        if chosen == rejected:
            raise ParleyError("the answers are equal; vote between two that differ.")
        for text in (chosen, rejected, *(turn.content for turn in turns)):
            refuse_surrogates(text, "a text of the vote")
        return turns


def voted_pair(vote: Vote, turns: Sequence[Turn]) -> dict[str, Any]:
    """Make a row of preference data, in the conversational format that `PreferenceDataModule` and TRL read.

    Args:
        vote: The vote.
        turns: The conversation as the model got it, including the server's system prompt.
    """
    row: dict[str, Any] = {
        "id": secrets.token_hex(8),
        "prompt": [{"role": turn.role, "content": turn.content} for turn in turns],
    }
    for side, answer in (("chosen", vote.chosen), ("rejected", vote.rejected)):
        row[side] = [{"role": "assistant", "content": answer.text.strip()}]
    for side, answer in (("chosen", vote.chosen), ("rejected", vote.rejected)):
        row |= {f"{side}_model": answer.model, f"{side}_options": answer.options.model_dump()}
    return row | {"time": datetime.now(UTC).isoformat(timespec="seconds")}


@dataclass
class VoteFile:
    """A JSON lines file to which pairs are appended atomically.

    Attributes:
        path: The file; made if it does not exist.

    Raises:
        ParleyError: Its name does not end in `.jsonl`, or it cannot be written.
    """

    path: Path
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if self.path.suffix.lower() != ".jsonl":
            raise ParleyError(f"{self.path} ends in {self.path.suffix or 'nothing'!r}; votes are written as .jsonl.")
        with writing(self.path), self.path.open("ab"):
            pass

    def add(self, row: dict[str, Any]) -> None:
        """Append a pair and flush it to disk.

        Raises:
            ParleyError: The file cannot be written; its content is unchanged.
        """
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self._lock, writing(self.path), self.path.open("ab+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # another server may write to the same file
            line = self._mended_end(stream.fileno()) + line
            with adding_to(self.path):
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())

    def _mended_end(self, descriptor: int) -> bytes:
        """Repair the end of the file: cut off half a line that a kill left, return a missing line end to write."""
        size = start = os.fstat(descriptor).st_size
        tail = b""
        while start and b"\n" not in tail:
            start, before = max(start - BLOCK, 0), start
            tail = os.pread(descriptor, before - start, start) + tail
        last = tail[tail.rfind(b"\n") + 1 :]
        if not last:
            return b""
        try:
            json.loads(last)
        except ValueError:
            log.warning("%s: cut off half a line that was left at its end.", self.path)
            os.truncate(descriptor, size - len(last))
            return b""
        return b"\n"
