"""Reward models and DPO on bases in 4 bits and in 16."""

from __future__ import annotations

import json
import math

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from src.datamodules import PreferenceDataModule
from src.models.classifiers import head_name
from src.models.fingerprint import base_record, fingerprint
from src.models.loading import load_model
from src.models.low_precision import is_quantized
from src.models.tying import base_model
from src.modules import DPOModule, RewardModule
from src.rl.bradley_terry import bradley_terry_loss

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[quantization]'")

TARGETS = {"bert": "query", "gpt2": "c_attn", "llama": "q_proj", "t5": "q", "bart": "q_proj"}
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
every_base = pytest.mark.parametrize("options", [{"quantization": NF4}, {"dtype": "bfloat16"}], ids=["nf4", "bf16"])


@every_base
@pytest.mark.parametrize("kind", TARGETS)
def test_a_reward_model_trains_adapter_and_head_in_float32(base, batch_of, kind, options):
    path, lora = base(kind), LoraConfig(r=4, target_modules=[TARGETS[kind]])
    module = RewardModule(path, lora=lora, **options)
    module.configure_model()
    chosen, rejected = module.rewards(batch_of(path, [0, 1, 2]))
    bradley_terry_loss(chosen, rejected, torch.zeros(3)).sum().backward()
    trained = {name: p for name, p in module.model.named_parameters() if p.requires_grad}
    assert any(head_name(base_model(module.model)) in name for name in trained)
    assert all(p.dtype == torch.float32 and p.grad is not None for p in trained.values())
    assert any(map(is_quantized, module.model.parameters())) == ("quantization" in options)
    exact = load_model(path, outputs=1)
    assert base_record(module.model).fingerprint == fingerprint(exact, base_record(exact).fresh)


@every_base
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_dpo_starts_at_its_reference(tiny_base, tmp_path, kind, options):
    rows = [{"prompt": f"{n} you are", "chosen": "a nice day", "rejected": "a fool so bad"} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path, lora = str(tiny_base(kind)), LoraConfig(r=4, target_modules=[TARGETS[kind]])
    data = PreferenceDataModule(
        path, path=str(tmp_path / "pairs.jsonl"), train_split="train[:6]", validation_split="train[6:]",
        batch_size=4, max_source_length=32, max_target_length=16, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=1, default_root_dir=tmp_path, logger=False, enable_checkpointing=False, max_steps=1,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(DPOModule(path, lora=lora, **options), data)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(math.log(2), abs=1e-6)
