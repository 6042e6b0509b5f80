"""Two processes of a test, which know each other."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 240  # seconds


def on_two(work: Callable[..., Any], store: Path, *given: Any) -> dict[int, Any]:
    """What a function returns on each of two processes, by rank.

    Args:
        work: Of a module, so that it can be sent; is called with the rank and what is given.
        store: A file that is not there yet, by which they find each other.
        *given: What it is given.
    """
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    started = [context.Process(target=_work, args=(work, rank, store, results, given)) for rank in range(2)]
    for process in started:
        process.start()
    try:
        return dict(results.get(timeout=PATIENCE) for _ in started)
    finally:
        for process in started:
            process.join(30)
            process.kill()


def _work(work: Callable[..., Any], rank: int, store: Path, results: Any, given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2)
    results.put((rank, work(rank, *given)))
    dist.barrier()
    dist.destroy_process_group()
