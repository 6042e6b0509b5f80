"""A resumed optimiser: the configuration's settings at the checkpoint's position."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, StepLR
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments

from src.modules.optimizers import OptimizerPlan, parameter_groups
from src.modules.schedules import WarmupSchedule

STEPS_AN_EPOCH = 4
MakeSchedule = Callable[[Optimizer], LRScheduler]
SCHEDULES: dict[str, MakeSchedule | None] = {
    "constant": None,
    "linear": lambda o: WarmupSchedule(o, warmup=2, num_training_steps=12),
    "more epochs": lambda o: WarmupSchedule(o, warmup=2, num_training_steps=40),
    "longer warm-up": lambda o: WarmupSchedule(o, warmup=0.5, num_training_steps=40),
    "cosine": lambda o: WarmupSchedule(o, warmup=0, decay="cosine", num_training_steps=40),
    "by epochs": lambda o: StepLR(o, 1, 0.5),
    "recursive": lambda o: CosineAnnealingLR(o, T_max=10),
    "one cycle": lambda o: OneCycleLR(o, max_lr=0.3, total_steps=10),
}


class Run:
    """Training without a trainer: a module, its optimiser, its schedule, and checkpoints of them."""

    def __init__(self, schedule: MakeSchedule | None, optimizer: Any = AdamW, **options: Any) -> None:
        torch.manual_seed(0)
        self.module = LightningModule()
        self.module.net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
        self.plan = OptimizerPlan(lambda groups: optimizer(groups, **{"lr": 0.1, **options}), schedule)
        made = self.plan.configure(self.module)
        self.optimizer = made["optimizer"] if isinstance(made, dict) else made
        self.config = made["lr_scheduler"] if isinstance(made, dict) else None
        self.steps = 0

    def step(self) -> list[float]:
        """Take a step; what it was taken at."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        generator = torch.Generator().manual_seed(self.steps)
        loss = self.module.net(torch.randn(5, 3, generator=generator)).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        if self.config and (self.config["interval"] == "step" or self.steps % STEPS_AN_EPOCH == 0):
            if isinstance(self.config["scheduler"], ReduceLROnPlateau):
                self.config["scheduler"].step(1.0)  # which never gets better
            else:
                self.config["scheduler"].step()
        return rates

    def checkpoint(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "net": self.module.net.state_dict(),
                "optimizer_states": [self.optimizer.state_dict()],
                "lr_schedulers": [self.config["scheduler"].state_dict()] if self.config else [],
                "optimizer": self.plan.describe(self.steps, self.steps // STEPS_AN_EPOCH),
                "steps": self.steps,
            }
        )

    def resume(self, checkpoint: dict[str, Any]) -> Run:
        """As Lightning does it."""
        checkpoint = copy.deepcopy(checkpoint)
        self.plan.resume_from(checkpoint)
        self.module.net.load_state_dict(checkpoint["net"])
        self.optimizer.load_state_dict(checkpoint["optimizer_states"][0])
        for state in checkpoint["lr_schedulers"]:
            self.config["scheduler"].load_state_dict(state)
        self.steps = checkpoint["steps"]
        return self


def run(steps: int, *args: Any, **options: Any) -> Run:
    made = Run(*args, **options)
    for _ in range(steps):
        made.step()
    return made


@pytest.mark.parametrize("position", [1, 5, 8])
@pytest.mark.parametrize("after", SCHEDULES)
@pytest.mark.parametrize("before", SCHEDULES)
def test_rates_are_those_of_a_run_that_was_always_configured_so(before, after, position):
    checkpoint = run(position, SCHEDULES[before], lr=0.1).checkpoint()
    for rate in (0.1, 0.02):
        fresh, resumed = run(position, SCHEDULES[after], lr=rate), Run(SCHEDULES[after], lr=rate).resume(checkpoint)
        expected, found = ([one.step() for _ in range(6)] for one in (fresh, resumed))
        assert torch.tensor(found).numpy() == pytest.approx(torch.tensor(expected).numpy(), rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nothing_changed_is_exact(schedule):
    whole, cut = run(9, SCHEDULES[schedule]), run(5, SCHEDULES[schedule])
    resumed = Run(SCHEDULES[schedule]).resume(cut.checkpoint())
    for _ in range(4):
        resumed.step()
    for ours, theirs in zip(resumed.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert str(resumed.checkpoint()) == str(whole.checkpoint())


def test_every_option_is_the_configurations_and_the_moments_are_the_checkpoints():
    before = run(5, None, weight_decay=0.1, betas=(0.9, 0.99)).checkpoint()
    after = Run(None, weight_decay=0.3, betas=(0.8, 0.95), lr=0.7).resume(before)
    decayed, spared = after.optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert all((group["lr"], group["betas"]) == (0.7, (0.8, 0.95)) for group in (decayed, spared))
    moments = [after.optimizer.state[p]["exp_avg"] for group in (decayed, spared) for p in group["params"]]
    saved = [state["exp_avg"] for _, state in sorted(before["optimizer_states"][0]["state"].items())]
    assert len(moments) == len(saved) == 4
    assert all(torch.equal(*pair) for pair in zip(moments, saved, strict=True))


def test_what_an_optimiser_keeps_in_its_options_stays():
    """As Prodigy keeps its estimate of the distance."""

    class Learns(SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["momentum"] += 0.5
            super().step(closure)

    cut = run(3, None, Learns, lr=0.01).checkpoint()
    resumed = Run(None, Learns, lr=0.5).resume(cut).optimizer.param_groups[0]
    assert (resumed["lr"], resumed["momentum"]) == (0.5, 1.5)


def test_moments_follow_their_parameters_when_other_ones_decay():
    whole = run(5, None)
    saved = whole.checkpoint()
    (first, second), state = saved["optimizer_states"][0]["param_groups"], saved["optimizer_states"][0]["state"]
    state[0], state[1] = state[1], state[0]  # as if the checkpoint had them in another order
    first_name, second_name = first["param_names"][0], second["param_names"][0]
    first["param_names"][0], second["param_names"][0] = second_name, first_name
    resumed = Run(None).resume(saved)
    for ours, theirs in zip(resumed.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(resumed.optimizer.state[ours]["exp_avg"], whole.optimizer.state[theirs]["exp_avg"])


def test_another_optimiser_begins_without_moments(caplog):
    saved = run(5, SCHEDULES["linear"]).checkpoint()
    resumed = Run(SCHEDULES["linear"], SGD, momentum=0.9).resume(saved)
    assert not resumed.optimizer.state
    assert resumed.step() == pytest.approx(run(5, SCHEDULES["linear"]).step())
    assert "begins without moments" in caplog.text


def test_a_plateau_keeps_what_it_has_taken_off():
    def plateau(patience: int) -> Any:
        return lambda o: ReduceLROnPlateau(o, monitor="val/loss", factor=0.5, patience=patience)

    saved = run(3 * STEPS_AN_EPOCH, plateau(0)).checkpoint()  # two reductions
    assert Run(plateau(0)).resume(saved).step() == [0.025, 0.025]
    assert Run(plateau(0), lr=0.2).resume(saved).step() == pytest.approx([0.05, 0.05])
    resumed = Run(plateau(3), lr=0.2).resume(saved)
    assert resumed.config["scheduler"].patience == 3
    assert resumed.step() == pytest.approx([0.05, 0.05])


def test_decay_spares_what_transformers_spares(tmp_path):
    """Also T5's relative_attention_bias, which is a matrix."""
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    model = AutoModel.from_config(AutoConfig.for_model("t5", **sizes))
    settings = TrainingArguments(output_dir=str(tmp_path), weight_decay=0.1, use_cpu=True, report_to=[])
    peer = Trainer(model, settings).create_optimizer()
    expected = [{id(p) for p in group["params"]} for group in peer.param_groups]
    groups = parameter_groups(model, {})
    assert [{id(p) for _, p in group["params"]} for group in groups] == expected
    spared = [name for name, _ in groups[1]["params"]]
    assert any("relative_attention_bias" in name for name in spared)
