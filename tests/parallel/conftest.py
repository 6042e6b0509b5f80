from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """A mesh of this process alone: everything is cut, into one piece."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()
        gc.collect()  # a group that is still garbage would be waited for by a process that another test forks
