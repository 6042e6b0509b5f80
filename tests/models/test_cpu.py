"""The faster dropout and attention of a CPU compute what the models' own do."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from src.errors import ParleyError
from src.models import cpu
from src.models.lora import add_lora
from src.modules import CausalLMModule, Seq2SeqModule


def _without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def _loss_and_gradients(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture
def inputs(model):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 300, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[2, 2:] = 0
    labels = ids[:, :6] if model.config.is_encoder_decoder else ids
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels.masked_fill(mask[:, : labels.shape[1]] == 0, -100),
    }


@pytest.mark.parametrize("forced", [False, True], ids=["as chosen", "own formula"])
def test_loss_and_gradients_are_the_models_own(model, inputs, forced, monkeypatch):
    plain = _without_dropout(model).train()
    fast = copy.deepcopy(plain)
    cpu.speed_up_on_cpu(fast)
    if forced:  # as if there were dropout, without any
        monkeypatch.setattr(cpu, "_dropout", lambda weights, p: weights)
        for module in fast.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.1
            if isinstance(getattr(module, "attn_dropout", None), nn.Dropout):
                module.attn_dropout.p = 0.1
        monkeypatch.setattr(nn.functional, "dropout", lambda values, *_, **__: values)
    expected, expected_gradients = _loss_and_gradients(plain, inputs)
    loss, gradients = _loss_and_gradients(fast, inputs)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_answer_is_the_same_with_gradients_and_without(model, inputs, precision):
    """A ratio of the two is what PPO learns from."""
    cpu.speed_up_on_cpu(_without_dropout(model).train())
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        logits = model(**inputs).logits
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, logits)
    assert logits.requires_grad


def test_generation_stays_the_same(model, inputs):
    prompts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if not model.config.is_encoder_decoder:
        prompts = {name: tensor.flip(1) for name, tensor in prompts.items()}  # padding goes to the left
    model.eval()
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(**prompts, **options)
    cpu.speed_up_on_cpu(model)
    assert torch.equal(model.generate(**prompts, **options), expected)


def test_nothing_of_it_is_saved(model, tmp_path):
    before = model.state_dict()
    cpu.speed_up_on_cpu(model)
    model.save_pretrained(tmp_path)
    assert cpu.ATTENTION not in (tmp_path / "config.json").read_text()
    assert before.keys() == model.state_dict().keys()


def test_adapters_are_reached(model, targets):
    adapted = add_lora(model, LoraConfig(r=2, target_modules=targets, lora_dropout=0.1))
    cpu.speed_up_on_cpu(adapted)
    assert not [module for module in adapted.modules() if type(module) is nn.Dropout]
    assert [name for name, module in adapted.named_modules() if "lora_dropout" in name and type(module) is cpu.Dropout]


def test_dropout_of_attention_is_random_while_training_only():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=8, vocab_size=20, resid_pdrop=0, embd_pdrop=0)
    model = GPT2LMHeadModel(config)
    cpu.speed_up_on_cpu(model)
    ids = torch.arange(8)[None]
    assert not torch.equal(model.train()(ids).logits, model(ids).logits)
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("p", [0.0, 0.05, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_share_of_what_is_dropped(p, dtype):
    torch.manual_seed(0)
    count = 400_003  # not a multiple of the elements that share a random word
    dropped = cpu.dropout(torch.ones(count, dtype=dtype), p)
    assert dropped.dtype == dtype
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / count) ** 0.5 + 2**-16)
    if 0 < p < 1:
        assert dropped.float().max().item() == pytest.approx(1 / (1 - p), rel=1e-2 if dtype == torch.bfloat16 else 1e-4)


def test_elements_of_one_word_are_independent():
    torch.manual_seed(0)
    kept = (cpu.dropout(torch.ones(400_000), 0.3) > 0).float()
    for distance in (1, 2, 3, 4):
        assert abs(torch.corrcoef(torch.stack([kept[:-distance], kept[distance:]]))[0, 1]) < 0.01


def test_gradient_passes_what_was_kept():
    torch.manual_seed(0)
    values = torch.randn(1000, requires_grad=True)
    dropped = cpu.dropout(values, 0.25)
    dropped.sum().backward()
    torch.testing.assert_close(values.grad * values, dropped)


def test_the_generator_decides():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(cpu.dropout(torch.ones(1000), 0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("wanted", [True, False])
def test_a_module_leaves_them_off_where_they_are_not_wanted(tiny_base, wanted):
    module = Seq2SeqModule(str(tiny_base("t5")), speed_ups=wanted)
    module.trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    module.configure_model()
    dropouts = {type(part) for part in module.model.modules() if isinstance(part, nn.Dropout)}
    assert dropouts == {cpu.Dropout if wanted else nn.Dropout}
    assert (module.model.config._attn_implementation == cpu.ATTENTION) is wanted


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_a_module_takes_the_attention_that_is_asked_for(tiny_base, kind):
    losses = {}
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    for name in (None, "eager", "sdpa"):
        make = Seq2SeqModule if kind == "t5" else CausalLMModule
        module = make(str(tiny_base(kind)), attn_implementation=name)
        module.trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
        module.configure_model()
        assert module.model.config._attn_implementation == (name or cpu.ATTENTION)
        losses[name] = module.model.eval()(input_ids=ids, labels=ids).loss.item()
    assert losses[None] == pytest.approx(losses["eager"], rel=1e-5)
    assert losses["sdpa"] == pytest.approx(losses["eager"], rel=1e-5)


@pytest.mark.parametrize("name", ["flash_attention_2", "no such thing"])
def test_an_attention_that_is_not_there_is_one_line(tiny_base, name):
    module = Seq2SeqModule(str(tiny_base("t5")), attn_implementation=name)
    with pytest.raises(ParleyError, match=f"^attn_implementation is '{name}'") as error:
        module.configure_model()
    assert "\n" not in str(error.value)
