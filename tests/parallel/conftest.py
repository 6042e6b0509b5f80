from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from src.callbacks.storage import AtomicCheckpointIO


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """A mesh of this process alone: everything is cut, into one piece."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()
        gc.collect()  # a group that is still garbage would be waited for by a process that another test forks


@pytest.fixture
def quiet_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """From a strategy and a number of steps to a Trainer on one process that writes and shows nothing by itself."""

    def make(strategy: Any, steps: int, **settings: Any) -> Trainer:
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        options |= {"enable_model_summary": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
        return Trainer(
            accelerator="cpu",
            devices=1,
            strategy=strategy,
            max_steps=steps,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=tmp_path,
            **options,
            **settings,
        )

    return make
