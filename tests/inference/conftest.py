"""Finished models that say various things, in every form that a model can have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from src.inference.loading import load_finished
from src.models.adapters import save_adapter
from src.models.loading import load_model, load_tokenizer
from src.models.lora import add_lora
from src.models.saving import save_model
from src.modules.checkpoint import describe
from tests.shaking import shaken


@pytest.fixture(scope="session")
def forms(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """From an architecture to the same adapted model as a checkpoint, an adapter and a whole directory."""
    root = tmp_path_factory.mktemp("forms")

    def make(architecture: str) -> dict[str, Path]:
        places = {
            "checkpoint": root / f"{architecture}.ckpt",
            "adapter": root / f"{architecture}-adapter",
            "directory": root / f"{architecture}-merged",
            "whole checkpoint": root / f"{architecture}-whole.ckpt",
        }
        if places["checkpoint"].is_file():
            return places
        base, tokenizer = load_model(tiny_base(architecture)), load_tokenizer(tiny_base(architecture))
        assert isinstance(base, PreTrainedModel)
        targets = {"t5": ["q", "v"], "gpt2": ["c_attn"]}.get(architecture, ["q_proj", "v_proj"])
        model = add_lora(base, LoraConfig(r=4, target_modules=targets))
        shaken(model, only="lora_")
        state = {f"model.{name}": value for name, value in model.state_dict().items() if "lora_" in name}
        torch.save({"parley": describe(model), "state_dict": state}, places["checkpoint"])
        save_adapter(model, tokenizer, places["adapter"])
        whole = load_finished(str(places["adapter"]), device="cpu").model
        assert isinstance(whole, PreTrainedModel)
        save_model(whole, tokenizer, places["directory"])
        state = {f"model.{name}": value for name, value in whole.state_dict().items()}
        description = describe(whole)
        description["base"]["name"] = str(tiny_base(architecture))
        torch.save({"parley": description, "state_dict": state}, places["whole checkpoint"])
        return places

    return make
