"""Two processes that have different things to do, in shards and in copies of shards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from src.models.loading import load_model
from src.models.lora import add_lora, merged
from src.models.responses import encode
from src.models.tying import base_model
from src.models.value_head import ValueHead
from src.parallel.gathering import bytes_of, gathered, local, total_norm, whole
from src.parallel.sharding import shard, shard_like
from tests.parallel.two import on_two

ROWS = torch.arange(5, 21).reshape(4, 4)


def loss_of(model: nn.Module, head: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """The encoder by itself, the model, and what is beside it, as a preference loss has them."""
    base = base_model(model)
    hidden = encode(model, rows, torch.ones_like(rows))
    assert hidden is not None
    output = base(
        encoder_outputs=(hidden.repeat(1, 1, 1),),
        attention_mask=torch.ones_like(rows),
        decoder_input_ids=rows,
        output_hidden_states=True,
    )
    return output.logits.square().mean() + head(output.decoder_hidden_states[-1]).mean() + hidden.abs().mean()


def make(base: Path, *, lora: bool) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = load_model(base)
    if lora:
        model = add_lora(model, LoraConfig(r=3, target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return model.eval(), ValueHead(base_model(model).config.hidden_size, "random")


def gradients(*modules: nn.Module) -> dict[str, torch.Tensor]:
    named = [(f"{place}.{name}", p) for place, part in enumerate(modules) for name, p in part.named_parameters()]
    return {name: whole(parameter.grad).clone() for name, parameter in named if parameter.grad is not None}


def work(rank: int, base: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for kind, lora, replicas in (("whole", False, 1), ("lora", True, 1), ("copies", False, 2)):
        model, head = make(base, lora=lora)
        loss_of(model, head, ROWS).backward()
        expected = gradients(model, head)
        whole_bytes = bytes_of(model.parameters())
        model.zero_grad()
        head.zero_grad()
        mesh = init_device_mesh("cpu", (2,) if replicas == 1 else (2, 1), mesh_dim_names=("a", "b")[-replicas:])
        shard(base_model(model), mesh)
        shard(head, mesh)
        share = bytes_of(model.parameters()) / whole_bytes
        for _ in range(2):  # two batches of one step: reduced after each
            (loss_of(model, head, ROWS[2 * rank : 2 * rank + 2]) / 2).backward()
        mine = gradients(model, head)
        off = max(float((mine[name] - expected[name]).abs().max()) for name in expected)
        norm = float(total_norm(p.grad for part in (model, head) for p in part.parameters() if p.grad is not None))
        off_norm = abs(norm - float(torch.nn.utils.get_total_norm(expected.values())))
        # Answers of different lengths, and none on the second process.
        lengths = []
        with gathered(model), merged(model):
            for length in (3, 9) if rank == 0 else ():
                with torch.no_grad():
                    answers = model.generate(
                        input_ids=ROWS, max_new_tokens=length, min_new_tokens=length, do_sample=False, synced_gpus=False
                    )
                lengths.append(answers.shape[1])
        names = mine.keys() == expected.keys()
        found[kind] = {"off": off, "off_norm": off_norm, "share": share, "lengths": lengths, "names": names}
    odd = torch.arange(15.0).reshape(5, 3)
    like = nn.Linear(3, 5, bias=False)
    shard(like, init_device_mesh("cpu", (2,)))
    cut = shard_like(odd, like.weight)
    assert isinstance(cut, DTensor)
    found["odd"] = {"rows": len(local(cut)), "like": len(local(like.weight)), "whole": torch.equal(whole(cut), odd)}
    return found


@pytest.mark.slow
def test_gradients_answers_and_shares(tiny_base, tmp_path):
    for rank, found in on_two(work, tmp_path / "store", tiny_base("t5")).items():
        for kind in ("whole", "lora", "copies"):
            one = found[kind]
            assert one["names"], kind
            assert one["off"] < 1e-6, kind
            assert one["off_norm"] < 1e-5, kind
            assert one["lengths"] == ([4, 10] if rank == 0 else [])
            assert one["share"] == pytest.approx(1.0 if kind == "copies" else 0.5, abs=0.03)
        assert found["odd"] == {"rows": 3 - rank, "like": 3 - rank, "whole": True}
