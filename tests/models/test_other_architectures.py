"""What Marian, T5Gemma and KoBART do otherwise than the rest."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import MarianConfig, MarianMTModel, T5GemmaConfig
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

from src.cli import main
from src.models.loading import load_model, load_tokenizer, model_from_config
from src.models.saving import save_model
from src.models.tying import hidden_size, positions
from src.modules import PPOModule
from src.rewards import LengthReward


def test_marian_keeps_its_positions(tiny_base: Callable[..., Path], tmp_path: Path, shake, logits) -> None:
    tokenizer = load_tokenizer(tiny_base("bart"))
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    ids = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    model = MarianMTModel(MarianConfig(vocab_size=len(tokenizer), **sizes, **heads, **ids)).eval()
    shake(model)
    before = logits(model)
    save_model(model, tokenizer, tmp_path / "marian")
    torch.testing.assert_close(logits(MarianMTModel.from_pretrained(tmp_path / "marian")), before, rtol=0, atol=0)
    torch.testing.assert_close(logits(load_model(tmp_path / "marian")), before, rtol=0, atol=0)


def test_t5gemma_has_its_width_in_its_decoder(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_base("t5"))
    options = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
    }  # fmt: skip
    parts = {"encoder": T5GemmaModuleConfig(**options), "decoder": T5GemmaModuleConfig(**options)}
    model = model_from_config(T5GemmaConfig(**parts, vocab_size=len(tokenizer), decoder_start_token_id=0))
    assert (hidden_size(model), positions(model)) == (32, 64)
    save_model(model, tokenizer, tmp_path / "t5gemma")
    module = PPOModule(str(tmp_path / "t5gemma"), LengthReward(target=5))
    module.configure_model()
    assert module.value_head.layers[0].in_features == 32


def test_kobarts_labels_are_no_news(
    tiny_base: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny_base("bart"), tmp_path / "kobart")
    file = tmp_path / "kobart" / "config.json"
    labels = {"num_labels": 3, "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | labels))
    logging.getLogger("transformers").propagate = True
    try:
        load_model(tmp_path / "kobart")
        load_tokenizer(tmp_path / "kobart")
    finally:
        logging.getLogger("transformers").propagate = False
    assert "num_labels" not in caplog.text


def test_an_encoder_decoder_is_not_sent_to_a_format(
    tiny_base: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model(tiny_base("bart")), load_tokenizer(tiny_base("bart"))
    model.final_logits_bias[0, tokenizer.eos_token_id] = 1000
    save_model(model, tokenizer, tmp_path / "mute")
    monkeypatch.setattr(logging.getLogger("src"), "handlers", [caplog.handler])
    assert main(["generate", str(tmp_path / "mute"), "--prompt", "Hi", "--device", "cpu"]) == 0
    assert "the model ended at once" in caplog.text
    assert "--format" not in caplog.text
