"""The Lightning strategy `sharded`: parameters, gradients and optimiser state sharded over all processes."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from src.contracts import MapsTensors, Shardable, Share, Writing
from src.errors import ParleyError
from src.parallel.gathering import gathered, reshard
from src.parallel.sharding import is_sharded, shard, shard_like
from src.parallel.states import (
    each_once,
    gather_state,
    gather_weights,
    load_optimizer_state,
    refuse_beyond_rows,
)
from src.ranges import COUNT

COMPUTED_IN = {"32-true": None, "bf16-mixed": torch.bfloat16, "bf16-true": None}


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes of all machines, GPUs or CPUs (gloo).

    A Module is set up, and restored from a checkpoint, as with any strategy; then its `sharded_roots` are sharded,
    block by block.
    Validation, test and predictions run on gathered weights (`gathered`). A checkpoint is the file of any other
    strategy, gathered by the first process, or a directory to which each process writes its shards; both are read by
    any strategy, on any number of processes. Gradients are reduced, in float32, after every batch, accumulated ones
    too, so that they are never whole on one process.

    Args:
        replicas: Copies of the model, each sharded over `processes / replicas` processes; more than one, such as the
            number of machines, needs less traffic between them and more memory (HSDP).
        checkpoints: `whole`: one file; `shards`: a directory, for which nothing is gathered.
        process_group_backend: `nccl` or `gloo`; the device's when left out.
        timeout: How long collective calls wait for other processes.

    Raises:
        ParleyError: `replicas` is not positive.
    """

    def __init__(
        self,
        replicas: int = 1,
        checkpoints: Literal["whole", "shards"] = "whole",
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        COUNT.refuse("trainer.strategy.replicas", replicas)
        super().__init__(
            save_distributed_checkpoint=False, process_group_backend=process_group_backend, timeout=timeout
        )
        self.replicas = replicas
        self.checkpoints = checkpoints
        self._writings = 0
        self._waiting: tuple[Mapping[str, Any], bool] | None = None  # weights, until the Module is in shards

    # Set-up

    def setup_environment(self) -> None:
        """Initialise the process group and the mesh of replicas and shards."""
        processes = self.num_nodes * self.num_processes
        if processes % self.replicas:
            raise ParleyError(
                f"trainer.strategy.replicas is {self.replicas}, which does not divide {processes} processes; give a "
                "number that does, such as the number of machines."
            )
        self._data_parallel_size, self._tensor_parallel_size = self.replicas, processes // self.replicas
        super().setup_environment()

    @property
    def mesh(self) -> DeviceMesh:
        """The mesh of shards; with several replicas, two-dimensional with replicas first."""
        return self.device_mesh if self.replicas > 1 else self.device_mesh["tensor_parallel"]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every process gets different data."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @contextmanager
    def made_once_a_machine(self, make: Callable[[Path], None]) -> Iterator[Path]:
        """A directory that the first process of each machine fills for all of it; it is gone after the block.

        What a process has mapped of its files by then stays. Every process must come here.

        Args:
            make: Is given the empty directory.
        """
        token = self.broadcast(secrets.token_hex(8))
        folder = Path(tempfile.gettempdir()) / f"parley-{token}"
        try:
            if self.local_rank == 0:
                folder.mkdir(mode=0o700)
                make(folder)
            self.barrier()
            yield folder
            self.barrier()
        finally:
            if self.local_rank == 0:
                shutil.rmtree(folder, ignore_errors=True)

    def setup(self, trainer: Trainer) -> None:
        """Shard the Module, which is set up; give it its checkpoint's weights; then make its optimiser.

        Raises:
            ParleyError: A precision, a callback, a part of the model or an optimiser does not work with shards.
        """
        module = self._module
        precision = str(self.precision_plugin.precision)
        if precision not in COMPUTED_IN:
            raise ParleyError(f"a sharded run cannot compute in {precision}; set trainer.precision: bf16-mixed.")
        if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ParleyError("WeightAveraging copies the whole model, which a sharded run has nowhere; leave it out.")
        if not isinstance(module, Shardable):
            raise ParleyError(f"{type(module).__name__} does not say what to shard; use trainer.strategy: ddp.")
        if not all(parameter.is_floating_point() for parameter in module.parameters()):
            raise ParleyError(
                "a quantised base cannot be cut into shards; use trainer.strategy: ddp, or leave quantization out "
                "(model.init_args.dtype: bfloat16 halves a frozen base, in shards too)."
            )
        if not is_sharded(module):
            self.precision_plugin.convert_module(module)
            for root in module.sharded_roots():
                shard(root, self.mesh, COMPUTED_IN[precision])
            _refuse_whole(module)
            module.on_sharded()
        self._load_waiting()
        super().setup(trainer)
        for optimizer in self.optimizers:
            refuse_beyond_rows(optimizer)

    @property
    def _module(self) -> LightningModule:
        assert self.lightning_module is not None, "the trainer connects the Module first"
        return self.lightning_module

    # Steps without gradients

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Validate with gathered weights."""
        with gathered(self._module):
            return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Test with gathered weights."""
        with gathered(self._module):
            return super().test_step(*args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Predict with gathered weights."""
        with gathered(self._module):
            return super().predict_step(*args, **kwargs)

    # Checkpoints: the same files as with any strategy

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """False: weights are restored before the set-up, while the Module is whole."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: Lightning restores the optimiser's state."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The Module's whole weights on rank 0 and an empty dictionary elsewhere; or each process's shards."""
        reshard(self._module)
        state = self._module.state_dict()
        if isinstance(self._module, Shardable):
            state = self._module.kept_state(state)
        if self.checkpoints == "shards":
            return each_once(self._module, state)
        return gather_weights(self._module, state, keep=self.is_global_zero)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load weights into the Module, once it is in shards: while it is whole they would be there twice."""
        self._waiting = (checkpoint["state_dict"], strict)
        if is_sharded(self._module):  # since an earlier run of this process
            self._load_waiting()

    def _load_waiting(self) -> None:
        """Take this process's part of the weights that wait for it."""
        if self._waiting is None:
            return
        (given, strict), self._waiting = self._waiting, None
        reshard(self._module)
        own = self._module.state_dict()
        state = {name: shard_like(value, own.get(name, value)) for name, value in given.items()}
        self._module.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's whole state on rank 0; or each process's shards."""
        state = optimizer.state_dict()
        return state if self.checkpoints == "shards" else gather_state(state, keep=self.is_global_zero)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's part of the optimisers' states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            load_optimizer_state(optimizer, state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write one file on rank 0, or a directory on all processes."""
        if self.checkpoints == "shards":
            self._writings += 1
            token = self.broadcast(f"{os.getpid()}-{self._writings}")
            how = replace(storage_options or Writing(), share=Share(self.global_rank, self.world_size, token))
            self.checkpoint_io.save_checkpoint(checkpoint, self.broadcast(filepath), storage_options=how)
            return
        super(ModelParallelStrategy, self).save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Whichever of the two, read by every process; of one file no more than its shards come into memory."""
        if isinstance(self.checkpoint_io, MapsTensors):
            return self.checkpoint_io.load_mapped(checkpoint_path)
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)


def _refuse_whole(module: nn.Module) -> None:
    """Refuse a trained parameter outside of all sharded roots, whose gradient would not be reduced.

    Raises:
        ParleyError: There is one.
    """
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            raise ParleyError(
                f"{name} lies outside the model that is sharded, as an adapter made of prompts does; use LoRA, or "
                "trainer.strategy: ddp."
            )
