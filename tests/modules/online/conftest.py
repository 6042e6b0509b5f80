"""Tiny bases, the bundled dialogues and a Trainer for every online method."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig
from torch import nn

from src.datamodules import DialogSumDataModule
from src.models.adapters import save_adapter
from src.models.loading import load_model, load_tokenizer
from src.models.lora import add_lora
from src.models.rollout import RolloutOptions
from src.modules import PPOModule
from src.rewards import LengthReward, Reward

TARGETS = {"t5": ["q", "v"], "bart": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}
PROMPTS = 8
SHORT = RolloutOptions(min_new_tokens=2, output_min_length=6, output_max_length=12)


@pytest.fixture(autouse=True)
def seed() -> None:
    """The run's seed, which would else come from the test before: some answers end, some are cut off."""
    torch.manual_seed(1)


@pytest.fixture
def make(tiny_base, sample, tmp_path):
    """From settings to a Module, its data and a Trainer of so many iterations."""

    def build(
        kind="t5", trained="whole", reward=None, iterations=2, trainer=None, data=None, method=PPOModule, **options
    ):
        architecture, _, variant = kind.partition("-")
        base = tiny_base(architecture, untied=variant == "untied")
        lora = LoraConfig(r=4, target_modules=TARGETS[architecture], lora_dropout=0.1)
        name = str(base)
        if trained == "continued":
            name = str(tmp_path / "adapter")
            torch.manual_seed(5)
            model = add_lora(load_model(base), lora)
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    nn.init.normal_(parameter, std=0.3)
            save_adapter(model, load_tokenizer(base), name, overwrite=True)
        options.setdefault("rollout", SHORT)
        options.setdefault("optimizer", lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
        if trained == "decoder":
            lora.target_modules = r"decoder\..*\.[qv]"
        adapter = lora if trained in ("lora", "decoder") else None
        module = method(name, reward or LengthReward(5), lora=adapter, **options)
        datamodule = DialogSumDataModule(
            name,
            path=str(sample),
            batch_size=PROMPTS,
            max_source_length=48,
            max_target_length=16,
            cache_dir=str(tmp_path / "cache"),
            **(data or {}),
        )
        steps = iterations * training_steps(module.config)
        settings = {"limit_train_batches": steps, "limit_val_batches": 0, "max_epochs": 1} | (trainer or {})
        return module, datamodule, quiet_trainer(tmp_path, **settings)

    return build


def training_steps(config, prompts=PROMPTS):
    """Lightning's batches of an iteration on one process."""
    return config.passes * -(-prompts * config.num_generations // config.minibatch_size)


def quiet_trainer(path, **settings):
    """A Trainer that says nothing and keeps nothing."""
    return Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=path,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        **({"logger": False, "enable_checkpointing": False} | settings),
    )


@pytest.fixture
def trained_state():
    """From a Module to copies of what it trains."""

    def copy(module):
        return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    return copy


class Scripted(Reward):
    """Plays back scores, then 1 for every response."""

    def __init__(self, *scripted):
        self.scripted = list(scripted)
        self.calls = []

    def __call__(self, prompts, responses):
        if not responses:
            return torch.zeros(0)
        self.calls.append((prompts, responses))
        score = self.scripted.pop(0) if self.scripted else 1.0
        return torch.full((len(responses),), score) if isinstance(score, float) else score


@pytest.fixture
def scripted():
    """A reward's class: what it is made with is what it says."""
    return Scripted
