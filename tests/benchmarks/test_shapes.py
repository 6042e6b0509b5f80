"""Models from shapes are of the size of those whose shapes they are."""

from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks.shapes import (
    DECODER_OF_T5_BASE,
    FLAN_T5_BASE,
    LLAMA_1B,
    add_shape,
    configuration,
    make_shaped,
    shape_of,
)
from src.models.loading import load_tokenizer, model_from_config


def shape(**given: object):
    parser = argparse.ArgumentParser()
    add_shape(parser, hidden_size=16, layers=1, heads=2, vocab_size=400)
    parser.set_defaults(**given)
    return shape_of(parser.parse_args([]))


@pytest.mark.parametrize(
    ("architecture", "given", "parameters"),
    [
        ("t5", FLAN_T5_BASE, 247_577_856),  # google/flan-t5-base
        ("llama", LLAMA_1B, 1_235_814_400),  # meta-llama/Llama-3.2-1B
    ],
)
def test_a_shape_has_the_published_number_of_parameters(tiny_base, architecture, given, parameters):
    tokenizer = load_tokenizer(tiny_base(architecture))
    with torch.device("meta"):
        model = model_from_config(configuration(architecture, shape(**given), tokenizer))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_decoder_has_as_many_blocks_as_both_sides_of_the_t5():
    assert DECODER_OF_T5_BASE["layers"] == 2 * FLAN_T5_BASE["layers"]
    assert DECODER_OF_T5_BASE["hidden_size"] == FLAN_T5_BASE["hidden_size"]


def test_a_model_is_made_with_what_the_options_say(tmp_path):
    from transformers import AutoModelForCausalLM

    given = shape(padded_vocabulary=512, key_value_heads=1, gated=True)  # which is a T5's
    count = make_shaped("llama", ["some words of a corpus"] * 9, tmp_path / "base", given)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert (model.config.vocab_size, model.config.num_key_value_heads, model.config.hidden_size) == (512, 1, 16)
