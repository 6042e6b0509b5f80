"""Weights cast once give what autocast gives, and come back as they were."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from src.models.autocast import cast_once
from src.models.loading import load_model
from src.models.lora import add_lora, merged


@pytest.fixture(params=["t5", "t5-untied", "bart", "gpt2", "llama"])
def model(request, tiny_base):
    architecture, *untied = request.param.split("-")
    torch.manual_seed(0)
    loaded = load_model(str(tiny_base(architecture, untied=bool(untied))))
    adapted = add_lora(loaded, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    return adapted.eval()


def decode(model) -> torch.Tensor:
    ids = torch.arange(5, 17).view(2, 6)
    with torch.no_grad():
        return model.generate(
            input_ids=ids, max_new_tokens=4, min_new_tokens=4, output_scores=True, return_dict_in_generate=True
        ).scores


def test_the_same_bits_as_autocast_and_the_very_weights_back(model):
    before = {name: (id(parameter), parameter.clone()) for name, parameter in model.named_parameters()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with merged(model):
            expected = decode(model)
        with merged(model), cast_once(model):
            head = model.get_output_embeddings().weight
            assert head.dtype == torch.bfloat16
            assert model.get_input_embeddings().weight.dtype == torch.float32  # which a head may share
            got = decode(model)
    assert all(torch.equal(mine, autocasts) for mine, autocasts in zip(got, expected, strict=True))
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name][0]
        assert torch.equal(parameter, before[name][1])


def test_a_head_that_is_to_stay_in_float32_is_spared(model):
    with torch.autocast("cpu", dtype=torch.bfloat16), merged(model), cast_once(model, spare_head=True):
        assert model.get_output_embeddings().weight.dtype == torch.float32
        assert torch.bfloat16 in {parameter.dtype for parameter in model.parameters()}


def test_nothing_happens_outside_autocast(model):
    with cast_once(model):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_weights_come_back_after_an_error(model):
    with pytest.raises(RuntimeError), torch.autocast("cpu", dtype=torch.bfloat16), cast_once(model):
        raise RuntimeError
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
