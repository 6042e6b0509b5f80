"""Small agreements between processes that no GPU has to be waited for."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor


class Hosts:
    """The processes of a run, which agree over gloo: their GPUs' work goes on meanwhile.

    A collective call over NCCL joins the queue of the GPU, and to read its result is to wait until all before it is
    done. Every process must make the same calls.

    Args:
        world_size: The number of processes; one alone agrees with itself.
    """

    def __init__(self, world_size: int) -> None:
        self._group = torch.distributed.new_group(backend="gloo") if world_size > 1 else None

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        if self._group is None:
            return value
        found: Tensor = torch.tensor(value)
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return int(found)
