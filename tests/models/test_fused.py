"""Fused operations compute what the models' own do."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from transformers import GemmaConfig, GemmaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.activations import NewGELUActivation

from src.models.fused import FusedNorm, fuse_gelu, fuse_norms
from src.models.loading import load_model
from src.modules import Seq2SeqModule
from src.modules.optimizers import parameter_groups

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "vocab_size": 50,
    "head_dim": 8,
}


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith("norm")]


def shaken(model: nn.Module) -> nn.Module:
    """With weights of norms that are not all ones, or zeros."""
    chance = torch.Generator().manual_seed(1)
    for norm in norms(model):
        norm.weight.data += 0.3 * torch.randn(norm.weight.shape, generator=chance)
    return model


@pytest.mark.parametrize("architecture", ["t5", "llama", "gpt2", "bart"])
def test_loss_gradients_and_names_are_the_models_own(tiny_base, architecture):
    plain = shaken(load_model(tiny_base(architecture))).eval()
    fast = copy.deepcopy(plain)
    fuse_gelu(fast)
    fuse_norms(fast)
    assert (plain.state_dict().keys(), [name for name, _ in plain.named_parameters()]) == (
        fast.state_dict().keys(),
        [name for name, _ in fast.named_parameters()],
    )
    ids = torch.arange(5, 21).reshape(2, 8)
    for model in (plain, fast):
        model(input_ids=ids, labels=ids).loss.backward()
    torch.testing.assert_close(fast(ids, labels=ids).logits, plain(ids, labels=ids).logits, atol=1e-4, rtol=1e-4)
    for (name, one), other in zip(plain.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=1e-3, msg=name)
    assert not any(isinstance(module, NewGELUActivation) for module in fast.modules())


@pytest.mark.parametrize(
    ("model", "fused"),
    [
        (MistralForCausalLM(MistralConfig(**SMALL)), True),
        (Qwen3ForCausalLM(Qwen3Config(**SMALL)), True),
        (GemmaForCausalLM(GemmaConfig(**SMALL)), False),
    ],
    ids=["mistral", "qwen3", "gemma"],
)
def test_which_norms_are_fused_is_found_by_trying(model, fused):
    shaken(model)
    ids = torch.arange(5, 21).reshape(2, 8)
    expected = model(ids).logits
    fuse_norms(model)
    assert [isinstance(norm, nn.RMSNorm) for norm in norms(model)] == [fused] * len(norms(model))
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-4)


def test_norms_are_recognised_whatever_device_new_tensors_go_to(tiny_base):
    """Lightning sets a model up with the GPU as torch's default device."""
    model = load_model(tiny_base("t5"))
    with torch.device("meta"):
        fuse_norms(model)
    assert norms(model)
    assert all(isinstance(norm, nn.RMSNorm) and not norm.weight.is_meta for norm in norms(model))


class Norm(nn.Module):
    """What transformers has, with variations."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8))
        self.variance_epsilon = 1e-6

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * nn.functional.rms_norm(hidden, (8,), eps=self.variance_epsilon)


class Offset(Norm):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) + nn.functional.rms_norm(hidden, (8,), eps=self.variance_epsilon)


class Gated(Norm):
    def forward(self, hidden: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(hidden if gate is None else hidden * gate)


class GateWanted(Norm):
    def forward(self, hidden: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden * gate)


@pytest.mark.parametrize(("kind", "fused"), [(Norm, True), (Offset, False), (Gated, False), (GateWanted, False)])
def test_norms_that_compute_something_else_are_left_as_they_are(kind, fused):
    model = nn.Sequential(kind())
    fuse_norms(model)
    assert isinstance(model[0], nn.RMSNorm) == fused


@pytest.mark.parametrize(("weight", "hidden"), [("float32", "bfloat16"), ("float16", "float32"), ("bfloat16",) * 2])
@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_dtypes_are_those_that_the_models_own_norms_give(tiny_base, architecture, weight, hidden, is_autocast):
    model = load_model(tiny_base(architecture), dtype=getattr(torch, weight))
    own = next(norm for norm in norms(model) if not isinstance(norm, nn.RMSNorm))
    values = torch.randn(3, len(own.weight)).to(getattr(torch, hidden))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        expected, found = own(values), FusedNorm(own)(values)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_trains_weights_of_its_own_in_the_same_groups(tiny_base, dtype):
    model = load_model(tiny_base("t5"), dtype=dtype)
    before = [len(group["params"]) for group in parameter_groups(model, {})]
    fuse_norms(model)
    assert any(isinstance(module, nn.RMSNorm) for module in model.modules())
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert [len(group["params"]) for group in parameter_groups(model, {})] == before
    other = copy.deepcopy(model)
    assert not {id(weight) for weight in other.parameters()} & {id(weight) for weight in model.parameters()}


@pytest.mark.parametrize("wanted", [True, False])
def test_a_module_has_them_on_a_gpu_where_they_are_wanted(tiny_base, monkeypatch, wanted):
    module = Seq2SeqModule(str(tiny_base("t5")), speed_ups=wanted)
    module.trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    monkeypatch.setattr(type(module.trainer.strategy), "root_device", torch.device("cuda"))
    module.configure_model()
    assert any(isinstance(part, nn.RMSNorm) for part in module.model.modules()) == wanted
    assert not any(isinstance(part, NewGELUActivation) for part in module.model.modules()) or not wanted
