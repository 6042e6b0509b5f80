"""Activations that are computed again in the backward pass, block by block, in shards: nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers.modeling_layers import GradientCheckpointingLayer

from src.modules import CausalLMModule, Seq2SeqModule
from src.parallel.gathering import whole
from src.parallel.sharding import shard
from tests.parallel.two import on_two

IDS = torch.arange(5, 37).reshape(4, 8)
KINDS = ["t5", "t5+lora", "llama", "llama+lora"]
TARGETS = {"t5": ["q", "v", "wi", "wo"], "llama": ["q_proj", "v_proj", "down_proj"]}


def batch_of(rows: slice) -> dict[str, torch.Tensor]:
    return {"input_ids": IDS[rows], "attention_mask": torch.ones_like(IDS[rows]), "labels": IDS[rows].flip(1)}


def train_twice(
    base: Path, kind: str, mesh: DeviceMesh, *, recompute: bool, dtype: torch.dtype | None
) -> dict[str, object]:
    """Two batches of a step on two of the rows, dropout and all."""
    rank = mesh.get_local_rank()
    architecture, _, adapted = kind.partition("+")
    lora = LoraConfig(r=2, target_modules=TARGETS[architecture], lora_dropout=0.1) if adapted else None
    of = Seq2SeqModule if architecture == "t5" else CausalLMModule
    torch.manual_seed(0)
    module = of(str(base), lora=lora, dropout=0.1, gradient_checkpointing=recompute)
    module.configure_model()
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    blocks = [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]
    calls: list[int] = []
    for place, block in enumerate(blocks):  # the hooks of a block itself are not within what is computed again
        first = next(part for part in block.modules() if isinstance(part, torch.nn.Linear))
        first.register_forward_pre_hook(lambda *_, place=place: calls.append(place))
    for root in module.sharded_roots():
        shard(root, mesh, dtype)
    module.on_sharded()
    losses = []
    for number in range(2):
        torch.manual_seed(10 * rank + number)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
            loss, count = module.loss_sum(batch_of(slice(2 * rank, 2 * rank + 2)))
        (loss / count).backward()
        losses.append(float(loss.detach()))
    gradients = {name: whole(p.grad).clone() for name, p in module.named_parameters() if p.grad is not None}
    return {"losses": losses, "gradients": gradients, "calls": len(calls) / len(blocks)}


def compare(base: Path, kind: str, mesh: DeviceMesh, dtype: torch.dtype | None) -> dict[str, object]:
    """With activations that are kept, and with those that are computed again."""
    plain = train_twice(base, kind, mesh, recompute=False, dtype=dtype)
    again = train_twice(base, kind, mesh, recompute=True, dtype=dtype)
    mine, other = plain["gradients"], again["gradients"]
    assert isinstance(mine, dict)
    assert isinstance(other, dict)
    return {
        "losses": plain["losses"] == again["losses"],
        "names": mine.keys() == other.keys() and len(mine) > 2,
        "moved": max(float(gradient.abs().max()) for gradient in mine.values()) > 1e-3,
        "equal": max(float((other[name] - mine[name]).abs().max()) for name in mine) < 1e-6,
        "calls": (plain["calls"], again["calls"]),
    }


SAME = {
    "losses": True,
    "names": True,
    "moved": True,
    "equal": True,
    "calls": (3, 5),
}  # a block once more, and one to try the head


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_the_same(alone, tiny_base, kind, dtype):
    assert compare(tiny_base(kind.partition("+")[0]), kind, alone, dtype) == SAME


def work(_rank: int, bases: dict[str, Path]) -> dict[str, dict[str, object]]:
    mesh = init_device_mesh("cpu", (2,))
    return {kind: compare(bases[kind.partition("+")[0]], kind, mesh, None) for kind in KINDS}


@pytest.mark.slow
def test_on_two_processes_too(tiny_base, tmp_path):
    bases = {architecture: tiny_base(architecture) for architecture in ("t5", "llama")}
    for found in on_two(work, tmp_path / "store", bases).values():
        assert found == dict.fromkeys(KINDS, SAME)
