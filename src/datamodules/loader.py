"""A DataLoader that can save and restore its position."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from src.contracts import batches_per_global_batch, converted_batches
from src.datamodules.sampler import DealtBatchSampler
from src.errors import ParleyError

log = logging.getLogger(__name__)


def leave_signals_to_parent(worker: int) -> None:  # noqa: ARG001
    """Ignore stop signals in a data worker, since training still needs batches until the end of its step."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """Kill data workers that outlive their iterator, when the process exits.

    multiprocessing sends SIGTERM to them and then waits; they ignore it (`leave_signals_to_parent`), so it would wait
    for ever. An iterator stays alive where something refers to it, such as the traceback of an error.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class Batches:
    """Wraps a loader as a plain iterable, which Lightning does not rebuild.

    For prediction Lightning rebuilds every `DataLoader` with a batch sampler that records indices, which fails with
    custom samplers. Our batches contain their indices.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)


class ResumableDataLoader(DataLoader):
    """A DataLoader whose position is saved in the checkpoint.

    Lightning restores its own counters after a mid-epoch resume but not the loader, so the epoch would start over.
    It does save and load the state of a loader that offers `state_dict` and `load_state_dict`, and that is all
    this class adds: the epoch and the number of batches *handed to the training loop*. Workers run ahead of
    the loop, so what they have prepared does not count.

    Args:
        dataset: The examples.
        batch_sampler: The sampler of batches, which can start at any of them.
        **kwargs: As for `torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Dataset, batch_sampler: DealtBatchSampler, **kwargs: Any) -> None:
        # Its own generator: making an iterator draws a seed for workers, and a resumed run makes one more iterator.
        kwargs.setdefault("generator", torch.Generator().manual_seed(batch_sampler.seed))
        kwargs.setdefault("worker_init_fn", leave_signals_to_parent)
        super().__init__(dataset, batch_sampler=batch_sampler, **kwargs)
        self._batches_handed = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator function, so that nothing happens before the first batch is requested: Lightning makes the
        # iterator of a resumed run's first epoch before it calls `set_epoch`.
        sampler = self._sampler
        self._batches_handed = sampler.start_batch
        refusal = None
        if self.num_workers:
            atexit.unregister(end_workers)  # once is enough
            atexit.register(end_workers)
        try:
            for batch in super().__iter__():
                self._batches_handed += 1
                yield batch
        except ParleyError as error:
            if not self.num_workers:
                raise
            refusal = str(error).strip().splitlines()[-1].removeprefix(f"{_name(ParleyError)}: ")
        if (
            refusal is not None
        ):  # a worker's comes with its traceback as text; the error's frames would keep workers alive
            raise ParleyError(refusal)
        sampler.start_batch = 0

    @property
    def _sampler(self) -> DealtBatchSampler:
        assert isinstance(self.batch_sampler, DealtBatchSampler)
        return self.batch_sampler

    def state_dict(self) -> dict[str, int]:
        """The position: epoch, batches handed to the training loop, and the settings that these counts depend on."""
        sampler = self._sampler
        return {
            "epoch": sampler.epoch,
            "batches": self._batches_handed,
            "accumulate": sampler.accumulate,
            "steps": sampler.steps,
            "uses": sampler.uses,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore a position, also of a run that split the same global batches among another number of processes."""
        sampler = self._sampler
        now = sampler.accumulate * sampler.uses
        batches = converted_batches(state["batches"], batches_per_global_batch(state), now)
        if state["steps"] != sampler.steps:
            log.warning(
                "The checkpoint's run had %d steps an epoch and this one has %d: other data, or another global batch. "
                "This epoch goes on at step %d, but some examples may come twice or not at all.",
                state["steps"],
                sampler.steps,
                batches // now,
            )
        sampler.epoch = state["epoch"]
        sampler.start_batch = self._batches_handed = batches
