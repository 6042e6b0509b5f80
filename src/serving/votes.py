"""What people vote for on the page, as preference pairs that DPO and reward models learn from."""

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

MOST_CHARACTERS = 200_000  # of a message or an answer
BLOCK = 65_536  # bytes
Said = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Name = Annotated[str, Field(max_length=1000)]


class _Closed(BaseModel):
    """Types as they are, and no fields that nobody knows."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class VotedMessage(_Closed):
    """A message of the talk that was answered."""

    role: Literal["system", "user", "assistant"]
    content: Said


class VotedOptions(_Closed):
    """How an answer was decoded, as far as the request said; the same columns in every pair."""

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
    """An answer and what wrote it."""

    text: Said
    model: Name
    options: VotedOptions = VotedOptions()


class Vote(_Closed):
    """`POST /votes`: two answers to one talk, the better one first."""

    messages: Annotated[list[VotedMessage], Field(min_length=1, max_length=10_000)]
    chosen: VotedAnswer
    rejected: VotedAnswer

    def turns(self) -> tuple[Turn, ...]:
        """The talk that both answer.

        Raises:
            ParleyError: It does not end with the user's message, or the answers cannot be learned from.
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
    """A row of preference data, in the layout of messages that `PreferenceDataModule` and TRL read.

    Args:
        vote: The vote.
        turns: The talk as the model was asked it, the server's own system turn included.
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
    """A file of JSON lines that pairs are added to, each as a whole.

    Attributes:
        path: The file; made where there is none.

    Raises:
        ParleyError: It is no `.jsonl`, or it cannot be written.
    """

    path: Path
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if self.path.suffix.lower() != ".jsonl":
            raise ParleyError(f"{self.path} ends in {self.path.suffix or 'nothing'!r}; votes are written as .jsonl.")
        with writing(self.path), self.path.open("ab"):
            pass

    def add(self, row: dict[str, Any]) -> None:
        """Write a pair down; it is on the disk when this returns.

        Raises:
            ParleyError: The file cannot be written; what is in it stays.
        """
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self._lock, writing(self.path), self.path.open("ab+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # another server may have the same file
            line = self._mended_end(stream.fileno()) + line
            with adding_to(self.path):
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())

    def _mended_end(self, descriptor: int) -> bytes:
        """What must come before the next line: a kill may have left half of one, an editor one without its end."""
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
