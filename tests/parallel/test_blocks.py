"""Which parts of a model are sharded each by itself."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

from src.models.loading import load_model
from src.models.lora import add_lora
from src.models.tying import base_model
from src.parallel.blocks import blocks_of


def names(model: nn.Module) -> list[str]:
    of = {module: name for name, module in model.named_modules()}
    return sorted(of[block] for block in blocks_of(model))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("t5", ["decoder.block.0", "encoder.block.0"]),
        ("bart", ["model.decoder.layers.0", "model.encoder.layers.0"]),
        ("gpt2", ["transformer.h.0"]),
        ("llama", ["model.layers.0"]),
    ],
)
def test_the_architecture_s_own_blocks(tiny_base, architecture, expected):
    model = load_model(tiny_base(architecture))
    assert names(model) == expected
    adapted = add_lora(load_model(tiny_base(architecture)), LoraConfig(r=2, target_modules="all-linear"))
    assert names(base_model(adapted)) == expected


def test_every_parameter_is_of_one_block_or_of_the_root(tiny_base):
    model = load_model(tiny_base("t5"))
    blocks = [id(parameter) for block in blocks_of(model) for parameter in block.parameters()]
    assert len(blocks) == len(set(blocks))
    assert id(model.get_input_embeddings().weight) not in blocks


def test_layers_where_the_architecture_names_nothing():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(4, 2)
            self.trunk = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(3))})
            self.mixed = nn.ModuleList([nn.Linear(2, 2), nn.LayerNorm(2)])

    assert names(Plain()) == ["trunk.layers.0", "trunk.layers.1", "trunk.layers.2"]


def test_what_blocks_share_is_left_to_the_root():
    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
            self.layers[1].weight = self.layers[0].weight
            self.head = nn.Linear(2, 2)
            self.head.weight = self.layers[2].weight

    assert names(Sharing()) == ["layers.3"]


def test_inner_blocks_come_first():
    """An embedding that must not be split, and layers: BERT names both."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    assert names(BertModel(BertConfig(vocab_size=10, **sizes))) == ["embeddings", "encoder.layer.0", "encoder.layer.1"]
    albert = AlbertModel(AlbertConfig(vocab_size=10, embedding_size=4, **sizes))
    order = blocks_of(albert)
    places = {block: place for place, block in enumerate(order)}
    for block in order:
        assert all(places[inner] <= places[block] for inner in block.modules() if inner in places)


def test_a_mask_of_the_lowest_number_stays_a_number():
    """What FSDP's own cast makes minus infinity, and a row of which attention makes NaN."""
    from src.parallel.sharding import _caster

    mask = torch.full((2, 3), torch.finfo(torch.float32).min)
    ids = torch.arange(3)
    (hidden, same), given = _caster(torch.bfloat16)(None, (torch.ones(2), ids), {"mask": mask})
    assert hidden.dtype == given["mask"].dtype == torch.bfloat16
    assert same is ids
    assert bool(given["mask"].isfinite().all())
    assert not bool(mask.to(torch.bfloat16).isfinite().any())
