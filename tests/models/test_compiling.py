"""Blocks that are compiled compute what they computed before."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from lightning import Trainer
from peft import LoraConfig
from torch._dynamo.utils import counters

from src.errors import ParleyError
from src.models import compiling
from src.models.compiling import compile_blocks
from src.models.loading import load_model
from src.modules import CausalLMModule, Seq2SeqModule

CPU = torch.device("cpu")
SHAPES = [(4, 9), (2, 13), (5, 5)]


@pytest.fixture
def graphs() -> Callable[[], int]:
    """How many graphs the compiler has been given since the test began."""
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    return lambda: counters["stats"]["unique_graphs"] - before


def gradients(module, shape: tuple[int, int]) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(sum(shape))
    ids = torch.randint(5, 100, shape)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    module.zero_grad()
    loss = module.model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.item(), [one.grad.clone() for one in module.parameters() if one.grad is not None]


def attached(architecture: str, path, *, training: bool = True, **options):
    module = (Seq2SeqModule if architecture == "t5" else CausalLMModule)(str(path), dropout=0.0, **options)
    module.trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    module.trainer.training = training
    module.configure_model()
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "lora"), [("t5", False), ("gpt2", False), ("llama", True)])
def test_losses_and_gradients_are_those_of_a_model_that_is_not_compiled(tiny_base, architecture, lora, graphs):
    options = {"gradient_checkpointing": lora}
    if lora:
        options["lora"] = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    modules = []
    for torch_compile in (False, True):
        torch.manual_seed(0)
        modules.append(attached(architecture, tiny_base(architecture), torch_compile=torch_compile, **options))
    plain, compiled = modules
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]
    needed = []
    for shape in [*SHAPES, *([(1, 7)] if architecture == "gpt2" else [])]:
        loss, expected = gradients(plain, shape)
        found_loss, found = gradients(compiled, shape)
        assert found_loss == pytest.approx(loss, abs=1e-5)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        needed.append(graphs())
    assert 0 < needed[0] == needed[2], "other sizes needed other code"
    prompt = {"input_ids": torch.tensor([[5, 6, 7]]), "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(compiled.model.eval().generate(**prompt), plain.model.eval().generate(**prompt))
    assert graphs() == needed[-1], "something was compiled for generation"


def test_a_copy_has_weights_of_its_own(tiny_base):
    model = load_model(str(tiny_base("gpt2"))).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        plain = model(ids).logits
        compile_blocks(model, CPU)
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(model(ids).logits, plain)
        assert not other(ids).logits.any()


def test_nothing_to_compile_with_is_one_line(tiny_base, monkeypatch):
    def missing(*_args, **_kwargs):
        raise RuntimeError("\nInvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx\n…")

    monkeypatch.setattr(compiling.torch, "compile", lambda function, **_: missing)
    attached("gpt2", tiny_base("gpt2"), torch_compile=True, training=False)  # to test it needs no compiler
    with pytest.raises(ParleyError) as error:
        attached("gpt2", tiny_base("gpt2"), torch_compile=True)
    assert str(error.value) == (
        "torch_compile is true, but nothing can be compiled here (InvalidCxxCompiler: No working C++ compiler found in "
        "torch._inductor.config.cpp.cxx); install what torch.compile needs, such as g++ on a CPU, or set "
        "model.init_args.torch_compile: false."
    )
