from __future__ import annotations

import logging

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig
from transformers import T5Config

from src.callbacks import ParameterSummary
from src.errors import ParleyError
from src.models.loading import model_from_config
from src.models.lora import add_lora
from src.modules import Seq2SeqModule

FLAN_T5_BASE = {
    "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_decoder_layers": 12,
    "num_heads": 12, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("lora", "line"),
    [
        (None, "247,577,856 of 247,577,856 parameters trainable (100.00 %)"),
        (
            LoraConfig(r=32, lora_alpha=32, target_modules=["q", "v"]),
            "3,538,944 of 251,116,800 parameters trainable (1.41 %)",
        ),
    ],
    ids=["whole", "lora"],
)
def test_summary_of_flan_t5_base(lora, line, caplog):
    module = Seq2SeqModule("google/flan-t5-base", lora=lora)
    with torch.device("meta"):
        model = model_from_config(T5Config(**FLAN_T5_BASE))
        module.model = add_lora(model, lora) if lora else model
    with caplog.at_level(logging.INFO):
        ParameterSummary().on_fit_start(Trainer(logger=False, accelerator="cpu"), module)
    assert line in caplog.text


def test_weight_decay_spares_norms(tiny_base):
    module = Seq2SeqModule(
        str(tiny_base("t5")), optimizer=lambda groups: torch.optim.AdamW(groups, lr=1.0, weight_decay=0.5)
    )
    module.configure_model()
    groups = module.configure_optimizers().param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert all(parameter.ndim > 1 for parameter in groups[0]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))


def test_dropout_is_set_everywhere(tiny_base):
    ids = torch.arange(5, 29).view(2, 12)
    outputs = {}
    for dropout in (0.0, 0.3):
        module = Seq2SeqModule(str(tiny_base("t5")), dropout=dropout)
        module.configure_model()
        outputs[dropout] = [module.model(input_ids=ids, decoder_input_ids=ids[:, :4]).logits for _ in range(2)]
    assert torch.equal(*outputs[0.0])
    assert not torch.equal(*outputs[0.3])


def test_a_decoder_only_model_is_refused(tiny_base):
    with pytest.raises(ParleyError, match="decoder-only model \\(gpt2\\); use CausalLMModule"):
        Seq2SeqModule(str(tiny_base("gpt2"))).configure_model()


def test_several_answers_a_prompt_are_refused():
    from src.models.generation_options import GenerationOptions

    with pytest.raises(ParleyError, match="num_return_sequences"):
        Seq2SeqModule("any", generation=GenerationOptions(num_beams=2, num_return_sequences=2))
