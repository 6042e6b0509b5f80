"""A Module that is in shards since an earlier run of the same process goes on from a checkpoint like any other."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from peft import LoraConfig

from src.datamodules import DialogSumDataModule
from src.models.generation_options import GenerationOptions
from src.models.rollout import RolloutOptions
from src.modules import PPOModule, Seq2SeqModule
from src.parallel.gathering import local, whole
from src.parallel.strategy import ShardedStrategy
from src.rewards import LengthReward
from src.rl.config import PPOConfig


def seq2seq(base: str, **options):
    return Seq2SeqModule(base, dropout=0.0, **options)


def ppo(base: str, **options):
    rollout = RolloutOptions(min_new_tokens=2, output_min_length=4, output_max_length=8)
    given = {"rollout": rollout, "ppo": PPOConfig(ppo_epochs=1, minibatch_size=4)}
    return PPOModule(base, LengthReward(5), **given, **options)


@pytest.fixture
def start(tiny_base, sample, tmp_path, quiet_trainer):
    """From a Module's class to a Module, its data and a maker of Trainers."""

    def make(method, lora: bool):
        base = str(tiny_base("t5"))
        adapter = LoraConfig(r=2, target_modules=["q", "v"], lora_dropout=0.0) if lora else None
        torch.manual_seed(0)
        module = method(
            base,
            lora=adapter,
            generation=GenerationOptions(max_new_tokens=2),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        )
        sizes = {"max_source_length": 48, "max_target_length": 16, "validation_split": "validation[:2]"}
        data = DialogSumDataModule(base, path=str(sample), batch_size=4, cache_dir=str(tmp_path / "cache"), **sizes)
        return module, data

    def trainer(strategy, steps: int) -> Trainer:
        return quiet_trainer(strategy, steps, limit_val_batches=1)

    yield make, trainer
    if dist.is_initialized():
        dist.destroy_process_group()


def trained(module) -> dict[str, torch.Tensor]:
    return {name: whole(p.detach()).clone() for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", ["whole", "shards"])
@pytest.mark.parametrize(("method", "lora"), [(seq2seq, True), (ppo, False)])
def test_a_second_run_in_this_process(start, tmp_path, method, lora, checkpoints):
    make, trainer = start
    path = tmp_path / "step=0000002.ckpt"
    module, data = make(method, lora)
    first = trainer(ShardedStrategy(checkpoints=checkpoints), 2)
    first.fit(module, data)
    first.save_checkpoint(path)
    assert path.is_dir() == (checkpoints == "shards")
    saved = trained(module)

    def spoil() -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    local(parameter).add_(1.0)

    spoil()
    trainer(ShardedStrategy(), 2).validate(module, data, ckpt_path=path, verbose=False)
    assert all(torch.equal(weight, saved[name]) for name, weight in trained(module).items())
    spoil()
    trainer(ShardedStrategy(), 4).fit(module, data, ckpt_path=path)

    fresh, data = make(method, lora)
    trainer("auto", 4).fit(fresh, data, ckpt_path=path)
    expected = trained(fresh)
    assert not torch.equal(expected[name := next(iter(saved))], saved[name])
    for name, weight in trained(module).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=0, msg=name)
