"""Functions in processes of their own, forked from one that has imported the libraries: starting them takes no time.

`multiprocessing`'s fork server does it, which has one thread. A test of how the command itself is started, or killed,
starts `python -m src` instead.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PATIENCE = 300  # seconds


def in_processes(world: int, work: Callable[..., Any], *given: Any, **environment: str) -> list[Any]:
    """What a function returns in each of some processes, which Lightning takes for those of one run.

    Args:
        world: How many.
        work: Of a module, so that it can be sent, as what it is given and returns.
        *given: What it is given.
        **environment: More variables of each process.

    Raises:
        AssertionError: It raised in one of them; with what that one said.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["src.commands.trainer", "torch", "peft"])
    results = context.Queue()
    # A seed that another test has left in the environment would be taken.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    variables |= {"OMP_NUM_THREADS": "1", **environment}
    if world > 1:
        variables |= {"WORLD_SIZE": str(world), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port()}
    started = [
        context.Process(target=_work, args=(rank, work, given, variables, Path.cwd(), results)) for rank in range(world)
    ]
    for process in started:
        process.start()
    try:
        found: dict[int, Any] = {}
        while len(found) < world:
            rank, error, result = results.get(timeout=PATIENCE)
            assert error is None, f"process {rank} of {world}:\n{error}"
            found[rank] = result
        for process in started:
            process.join(30)
    finally:
        for process in started:
            process.kill()
    return [found[rank] for rank in range(world)]


def _work(
    rank: int, work: Callable[..., Any], given: tuple[Any, ...], variables: Mapping[str, str], place: Path, results: Any
) -> None:
    os.environ.clear()
    os.environ.update(variables)
    if "WORLD_SIZE" in variables:
        os.environ.update({"LOCAL_RANK": str(rank), "RANK": str(rank)})
    os.chdir(place)
    import torch

    torch.set_num_threads(1)
    try:
        results.put((rank, None, work(*given)))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
