"""A frozen base in 16 bits may be in shards, below an adapter in float32."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from peft import LoraConfig

from src.datamodules import DialogSumDataModule
from src.models.rollout import RolloutOptions
from src.modules import PPOModule, Seq2SeqModule
from src.parallel.gathering import whole
from src.parallel.strategy import ShardedStrategy
from src.rewards import LengthReward
from src.rl.config import PPOConfig

SHORT = RolloutOptions(min_new_tokens=2, output_min_length=4, output_max_length=6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["seq2seq", "ppo"])
def test_it_learns_what_it_learns_whole(method, tiny_base, sample, tmp_path):
    def train(strategy):
        base, lora = str(tiny_base("t5")), LoraConfig(r=4, target_modules=["q", "v"])
        seed_everything(1)
        options = {"lora": lora, "dtype": "bfloat16"}
        if method == "ppo":
            module = PPOModule(
                base, LengthReward(5), ppo=PPOConfig(ppo_epochs=1, minibatch_size=4), rollout=SHORT, **options
            )
        else:
            module = Seq2SeqModule(base, dropout=0.0, **options)
        data = DialogSumDataModule(
            base, path=str(sample), batch_size=4, max_source_length=32, max_target_length=16,
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        trainer = Trainer(
            strategy=strategy, accelerator="cpu", devices=1, default_root_dir=tmp_path, logger=False, max_steps=2,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, limit_val_batches=0, gradient_clip_val=1.0,
        )  # fmt: skip
        trainer.fit(module, data)
        assert {p.dtype for p in module.model.parameters() if not p.requires_grad} == {torch.bfloat16}
        return {name: whole(p.detach()).clone() for name, p in module.named_parameters() if p.requires_grad}

    expected, sharded = train("auto"), train(ShardedStrategy())
    assert expected.keys() == sharded.keys()
    for name, tensor in sharded.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-4, msg=name)
