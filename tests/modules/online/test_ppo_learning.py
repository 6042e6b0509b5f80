"""PPO learns what it is rewarded for, and stays where it was when KL is dear."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from src.datamodules import DialogSumDataModule
from src.models.rollout import RolloutOptions
from src.models.scratch import Sizes, make_base_model
from src.modules import PPOModule
from src.rewards import Reward
from src.rl.config import PPOConfig

WANTED = "e"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """From an architecture to a model with random weights whose tokens are bytes."""
    root = tmp_path_factory.mktemp("bases")

    def make(architecture):
        if not (root / architecture).exists():
            sizes = Sizes(hidden_size=32, layers=1, heads=2, feed_forward_size=64, vocab_size=260)
            make_base_model(architecture, ["ab ab"], root / architecture, sizes)
        return root / architecture

    return make


class ShareOfOneToken(Reward):
    """How much of a response is one byte."""

    def __call__(self, prompts, responses):
        return torch.tensor([response.count(WANTED) / max(1, len(response)) for response in responses])


class History(Callback):
    """Keeps figures of every iteration."""

    def __init__(self):
        self.figures = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.buffer.place == 1:
            self.figures.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def train(base, sample, path, seed, config, iterations, lr):
    torch.manual_seed(seed)
    module = PPOModule(
        str(base),
        ShareOfOneToken(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0),
        ppo=config,
        rollout=RolloutOptions(min_new_tokens=8, output_min_length=8, output_max_length=8),
    )
    data = DialogSumDataModule(
        str(base),
        path=str(sample),
        batch_size=32,
        max_source_length=16,
        max_target_length=8,
        cache_dir=str(path),
        seed=seed,
    )
    history = History()
    Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        max_steps=iterations * config.ppo_epochs * 32 // config.minibatch_size,
        callbacks=[history],
        gradient_clip_val=1.0,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(module, data)
    assert len(history.figures) == iterations
    return history.figures


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("architecture", ["t5", "gpt2"])
def test_it_learns(base, sample, tmp_path, architecture, seed):
    config = PPOConfig(ppo_epochs=2, minibatch_size=16, init_kl_coef=0.0, adaptive_kl=False)
    history = train(base(architecture), sample, tmp_path, seed, config, iterations=45, lr=1e-2)
    rewards = [figures["env/reward_mean"] for figures in history]
    assert rewards[0] < 0.2
    assert sum(rewards[-5:]) / 5 > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["t5", "gpt2"])
def test_a_large_kl_coefficient_keeps_it_near_where_it_was(base, sample, tmp_path, architecture):
    """Beside the same run without the penalty: noise moves the policy with it too, by so many nats a response."""
    kl = {}
    for coefficient in (0.0, 100.0):
        config = PPOConfig(ppo_epochs=2, minibatch_size=16, init_kl_coef=coefficient, adaptive_kl=False)
        history = train(base(architecture), sample, tmp_path, 1, config, iterations=30, lr=1e-3)
        kl[coefficient] = sum(figures["objective/kl"] for figures in history[-10:]) / 10
    assert history[-1]["env/reward_mean"] < 0.1
    assert kl[100.0] < 0.5 * kl[0.0]
