"""The loop that answers: every request that is there goes into the batch under way, a token of each at a time."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from src.datamodules.encoding import pad
from src.models.decoder import Decoder
from src.models.sources import first_line
from src.serving.beams import answer_by_beams
from src.serving.rows import Piece, Row, choose

if TYPE_CHECKING:
    from src.serving.hosted import Hosted

log = logging.getLogger(__name__)

GATHERING_SECONDS = 0.003  # that an idle engine waits for what comes together with a first request
READ_AT_ONCE = 16_384  # tokens of prompts, padding counted


class FullError(Exception):
    """More requests wait than may."""


@dataclass(frozen=True)
class Failed:
    """What ended a request that had nothing wrong with it.

    Attributes:
        reason: One line.
    """

    reason: str


Event = Piece | Failed


@dataclass(eq=False)
class Job:
    """A request's answers.

    Attributes:
        hosted: The model.
        rows: The answers to be written.
        send: Takes events, in the engine's thread.
        beams: Whether they are searched for by beams, each prompt's as a whole.
        is_streamed: Send what each step brings; otherwise what there is when an answer has ended.
        is_cancelled: Set by whoever no longer wants them.
        unfinished: How many of them are not written to their ends.
    """

    hosted: Hosted
    rows: list[Row]
    send: Callable[[list[Event]], object]
    beams: bool = False
    is_streamed: bool = True
    is_cancelled: bool = False
    pending: list[Event] = field(default_factory=list)
    unfinished: int = field(init=False)

    def __post_init__(self) -> None:
        self.unfinished = len(self.rows)


@dataclass(eq=False)
class _Batch:
    """Rows that are decoded together."""

    hosted: Hosted
    decoder: Decoder
    rows: list[tuple[Job, Row]]


@dataclass
class Load:
    """How busy an engine is.

    Attributes:
        rows: Answers that are being written.
        waiting: Requests that wait.
        tokens: Written so far.
        requests: Answered so far.
        largest: Answers that were written at once at most.
    """

    rows: int = 0
    waiting: int = 0
    tokens: int = 0
    requests: int = 0
    largest: int = 0


class Engine:
    """Answers requests in a thread of its own.

    Requests that wait are read together and then written together with those under way, where the architecture allows
    for it (`Decoder.can_join`); where not, batches that began at different times take turns, a token each.

    Args:
        max_rows: Answers that are written at once.
        max_waiting: Requests that wait at most.
    """

    def __init__(self, max_rows: int = 64, max_waiting: int = 256) -> None:
        self.max_rows = max_rows
        self.max_waiting = max_waiting
        self.load = Load()
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._batches: list[_Batch] = []
        self._stops = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End, whatever is under way."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Have a request answered.

        Raises:
            FullError: Too many wait.
        """
        with self._changed:
            if len(self._waiting) >= self.max_waiting:
                raise FullError
            self._waiting.append(job)
            self.load.waiting = len(self._waiting)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Do no more for a request."""
        job.is_cancelled = True
        with self._changed:
            self._changed.notify()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._batches or self._waiting)

    # In the engine's thread

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._changed:
                was_idle = not self._batches
                while not self._stops and self.is_idle:
                    self._changed.wait()
                if self._stops:
                    return
                if was_idle and len(self._waiting) < self.max_rows:
                    self._changed.wait(GATHERING_SECONDS)
            self._admit()
            for batch in list(self._batches):
                self._guarded(batch.rows, self._step, batch)
            self._batches = [batch for batch in self._batches if batch.rows]
            self.load.rows = sum(len(batch.rows) for batch in self._batches)

    def _admit(self) -> None:
        """Begin as many of the waiting requests as there is room for, first come, first served."""
        admitted: list[Job] = []
        with self._changed:
            room = self.max_rows - sum(len(batch.rows) for batch in self._batches)
            while self._waiting and (len(self._waiting[0].rows) <= room or self._waiting[0].is_cancelled):
                job = self._waiting.popleft()
                if not job.is_cancelled:
                    admitted.append(job)
                    room -= len(job.rows)
            self.load.waiting = len(self._waiting)
        while admitted:
            hosted, beams = admitted[0].hosted, admitted[0].beams
            alike = [job for job in admitted if job.hosted is hosted and job.beams == beams]
            admitted = [job for job in admitted if job not in alike]
            rows = [(job, row) for job in alike for row in job.rows]
            if beams:
                self._guarded(rows, self._search, hosted, rows)
                continue
            for together in _cut(rows):
                self._guarded(together, self._begin, hosted, together)

    def _guarded(self, rows: Sequence[tuple[Job, Row]], do: Callable[..., None], *args: object) -> None:
        """Do something for some rows; whatever goes wrong ends their requests and nothing else."""
        rows = list(rows)
        try:
            do(*args)
        except Exception as error:  # memory, a model's own code: the others' answers go on
            log.exception("A batch of %d answers failed.", len(rows))
            self._batches = [batch for batch in self._batches if not any(one in rows for one in batch.rows)]
            for job in {id(job): job for job, _ in rows}.values():
                job.send([Failed(first_line(error))])

    def _begin(self, hosted: Hosted, rows: list[tuple[Job, Row]]) -> None:
        """Read the prompts of new rows, write their first tokens, and take them into the batch under way."""
        device = hosted.finished.device
        ids, mask = pad(
            [row.prompt for _, row in rows],
            hosted.finished.tokenizer.pad_token_id,
            left=not hosted.finished.is_encoder_decoder,
        )
        hosted.activate()
        decoder = Decoder(hosted.finished.model, ids.to(device), mask.to(device))
        batch = _Batch(hosted, decoder, rows)
        self._step(batch)
        if not batch.rows:
            return
        under_way = next((one for one in self._batches if one.hosted is hosted and one.decoder.can_join), None)
        if under_way is not None and under_way.rows:
            under_way.decoder.join(batch.decoder)
            under_way.rows += batch.rows
        else:
            self._batches.append(batch)
        self.load.largest = max(self.load.largest, sum(len(one.rows) for one in self._batches))

    def _step(self, batch: _Batch) -> None:
        """Write a token of each row."""
        if all(job.is_cancelled for job, _ in batch.rows):
            batch.rows = []
            return
        batch.hosted.activate()
        logits = batch.decoder.own_logits()
        finite = logits.isfinite().any(dim=-1).tolist()
        tokens, logprobs = choose([row for _, row in batch.rows], logits)
        alive: list[int] = []
        touched: dict[int, Job] = {}
        for place, ((job, row), token, logprob) in enumerate(zip(batch.rows, tokens, logprobs, strict=True)):
            if job.is_cancelled:
                continue
            touched[id(job)] = job
            if not finite[place]:
                job.pending.append(Failed("what the model makes of the prompt is not finite."))
                job.is_cancelled = True
                continue
            piece = row.take(token, logprob)
            self.load.tokens += 1
            if piece.text or piece.finish:
                job.pending.append(piece)
            if piece.finish is None:
                alive.append(place)
            else:
                self._ends(job)
        for job in touched.values():
            self._send(job)
        batch.rows = [batch.rows[place] for place in alive]
        if alive:
            device = logits.device
            batch.decoder.advance(
                torch.tensor([tokens[place] for place in alive], device=device), torch.tensor(alive, device=device)
            )
            batch.decoder.trim()

    def _ends(self, job: Job) -> None:
        """Count an answer that has ended, and the request with its last one."""
        job.unfinished -= 1
        self.load.requests += job.unfinished == 0

    @staticmethod
    def _send(job: Job) -> None:
        has_ended = any(isinstance(event, Failed) or event.finish for event in job.pending[-len(job.rows) :])
        if has_ended or (job.is_streamed and job.pending):
            events, job.pending = job.pending, []
            job.send(events)

    def _search(self, hosted: Hosted, rows: list[tuple[Job, Row]]) -> None:
        """Answer by beam search, those that decode alike together; what is under way waits for it."""
        while rows:
            options = rows[0][1].options
            alike = [pair for pair in rows if pair[1].options == options]
            rows = [pair for pair in rows if pair[1].options != options]
            for together in _cut(alike):
                jobs = [job for job, _ in together]
                hosted.activate()
                pieces = answer_by_beams(hosted, [row for _, row in together], partial(_are_cancelled, jobs))
                for (job, row), piece in zip(together, pieces, strict=True):
                    self.load.tokens += len(row.ids)
                    self._ends(job)
                    job.send([piece])


def _are_cancelled(jobs: Sequence[Job]) -> bool:
    return all(job.is_cancelled for job in jobs)


def _cut(rows: list[tuple[Job, Row]]) -> list[list[tuple[Job, Row]]]:
    """Rows in their order, as many together as may be read at once; a prompt's best beams are of one search."""
    found: list[list[tuple[Job, Row]]] = []
    longest = width = 0
    before: list[int] | None = None
    for pair in rows:
        prompt, beams = pair[1].prompt, pair[1].options.num_beams
        if beams == 1 or prompt is not before:
            longest, width = max(longest, len(prompt)), width + beams
            if not found or longest * width > READ_AT_ONCE:
                found.append([])
                longest, width = len(prompt), beams
        found[-1].append(pair)
        before = prompt
    return found
