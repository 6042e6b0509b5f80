"""Two processes of a test, which know each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tests.forks import in_processes


def on_two(work: Callable[..., Any], store: Path, *given: Any) -> dict[int, Any]:
    """What a function returns on each of two processes, by rank.

    Args:
        work: Of a module, so that it can be sent; is called with the rank and what is given.
        store: A file that is not there yet, by which they find each other.
        *given: What it is given.
    """
    return dict(enumerate(in_processes(2, _work, work, store, given)))


def _work(work: Callable[..., Any], store: Path, given: tuple[Any, ...]) -> Any:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2)
    found = work(rank, *given)
    dist.barrier()
    return found
