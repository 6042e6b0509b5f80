"""What cannot be shared out is refused in one line that says what can."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from peft import PromptTuningConfig
from transformers.optimization import Adafactor

from src.commands.settings import check_settings
from src.errors import ParleyError
from src.modules import CausalLMModule
from src.parallel.strategy import ShardedStrategy


@pytest.mark.parametrize(
    "strategy",
    [
        "fsdp",
        "fsdp_cpu_offload",
        "deepspeed",
        "deepspeed_stage_3",
        {"class_path": "lightning.pytorch.strategies.FSDPStrategy"},
        {"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy", "init_args": {"stage": 2}},
        {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"},
    ],
)
def test_other_ways_to_share_out(strategy):
    with pytest.raises(ParleyError, match=r"configs/trainer/fsdp\.yaml") as refused:
        check_settings({"trainer": {"strategy": strategy}})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "strategy", ["auto", "ddp", "sharded", {"class_path": "src.parallel.strategy.ShardedStrategy"}]
)
def test_what_there_is(strategy):
    check_settings({"trainer": {"strategy": strategy}})


def test_no_copies():
    with pytest.raises(ParleyError, match="replicas is 0"):
        ShardedStrategy(replicas=0)


def fit(tmp_path, module: LightningModule, **settings: Any) -> None:
    options = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "max_steps": 1}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False}
    strategy = settings.pop("strategy", None) or ShardedStrategy()
    trainer = Trainer(strategy=strategy, default_root_dir=tmp_path, **options, **settings)
    try:
        trainer.fit(module, [{}])
    finally:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"precision": "16-true"}, "precision: bf16-mixed"),
        ({"callbacks": [WeightAveraging()]}, "WeightAveraging"),
        ({"strategy": ShardedStrategy(replicas=2)}, "does not divide 1 processes"),
    ],
)
def test_settings_at_odds_with_shards(tmp_path, tiny_base, settings, said):
    with pytest.raises(ParleyError, match=said):
        fit(tmp_path, CausalLMModule(str(tiny_base("gpt2"))), **settings)


def test_an_adapter_made_of_prompts(tmp_path, tiny_base):
    lora = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ParleyError, match="made of prompts"):
        fit(tmp_path, CausalLMModule(str(tiny_base("gpt2")), lora=lora))


@pytest.mark.parametrize("make", [torch.optim.Adafactor, partial(Adafactor, relative_step=False)])
def test_an_optimiser_that_looks_at_whole_parameters(tmp_path, tiny_base, make):
    with pytest.raises(ParleyError, match="Adafactor looks at whole parameters") as refused:
        fit(tmp_path, CausalLMModule(str(tiny_base("gpt2")), optimizer=lambda groups: make(groups, lr=1e-3)))
    assert "\n" not in str(refused.value)


def test_a_module_that_does_not_say_what_to_share_out(tmp_path):
    class Plain(LightningModule):
        def configure_model(self) -> None:
            pass

        def training_step(self, batch, batch_idx):
            return None

        def configure_optimizers(self):
            return None

    with pytest.raises(ParleyError, match="Plain does not say"):
        fit(tmp_path, Plain())
