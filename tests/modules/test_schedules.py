from __future__ import annotations

import io

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_scheduler,
)

from src.errors import ParleyError
from src.modules.schedules import WarmupSchedule


def rates(schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


@pytest.mark.parametrize("warmup", [0, 7, 0.1])
@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_as_transformers_does_it(decay, warmup):
    total = 50
    steps = warmup if warmup >= 1 or warmup == 0 else int(warmup * total)
    peers = {
        "linear": lambda o: get_linear_schedule_with_warmup(o, steps, total),
        "cosine": lambda o: get_cosine_schedule_with_warmup(o, steps, total),
        "constant": lambda o: get_constant_schedule_with_warmup(o, steps),
    }
    ours = WarmupSchedule(optimizer(), warmup=warmup, decay=decay)
    ours.plan(total)
    assert rates(ours, total) == pytest.approx(rates(peers[decay](optimizer()), total), abs=1e-9)


@pytest.mark.parametrize(
    ("decay", "settings"),
    [
        ("cosine_with_restarts", {"num_cycles": 3}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("cosine_with_min_lr", {"min_lr": 0.05}),
        ("polynomial", {"lr_end": 0.01, "power": 2.0}),
        ("inverse_sqrt", {}),
        ("warmup_stable_decay", {"num_decay_steps": 9}),
    ],
    ids=str,
)
def test_every_other_schedule_is_transformers_own(decay, settings):
    ours = WarmupSchedule(optimizer(), warmup=0.1, decay=decay, settings=settings)
    ours.plan(50)
    peer = get_scheduler(decay, optimizer(), 5, 50, dict(settings))
    found = rates(ours, 50)
    assert found == pytest.approx(rates(peer, 50), abs=1e-12)
    assert len(set(found)) > 10
    torch.save(ours.state_dict(), io.BytesIO())


@pytest.mark.parametrize("settings", [{"num_cycle": 3}, {}], ids=str)
def test_settings_that_a_schedule_does_not_take(settings):
    with pytest.raises(ParleyError, match="does not take settings"):
        WarmupSchedule(optimizer(), decay="linear" if settings else "cosine_with_min_lr", settings=settings)


@pytest.mark.parametrize("warmup", [-1, 1.5, float("nan")])
def test_a_warmup_that_is_neither_steps_nor_a_share(warmup):
    with pytest.raises(ParleyError, match="whole steps"):
        WarmupSchedule(optimizer(), warmup=warmup)


def test_state_survives():
    first = WarmupSchedule(optimizer(), warmup=5)
    first.plan(20)
    rates(first, 8)
    second = WarmupSchedule(optimizer(), warmup=5)
    second.plan(20)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates(second, 10) == pytest.approx(rates(first, 10))
