import math

import pytest
import torch

from src.rl.bradley_terry import bradley_terry_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("coefficient", [0.0, 0.05])
def test_the_loss_is_brute_force_s(smoothing, coefficient):
    chosen, rejected, margin = [0.3, -2.0, 5.0], [0.1, 1.5, -4.0], [0.0, 0.5, 1.0]
    expected = []
    for c, r, m in zip(chosen, rejected, margin, strict=True):
        p = 1 / (1 + math.exp(-(c - r - m)))
        expected.append(-(1 - smoothing) * math.log(p) - smoothing * math.log(1 - p) + coefficient * (c + r) ** 2)
    tensors = map(torch.tensor, (chosen, rejected, margin))
    loss = bradley_terry_loss(*tensors, label_smoothing=smoothing, center_coefficient=coefficient)
    torch.testing.assert_close(loss, torch.tensor(expected), atol=1e-4, rtol=1e-5)


def test_large_differences_stay_finite():
    rewards = torch.tensor([500.0, -500.0], requires_grad=True)
    loss = bradley_terry_loss(rewards, -rewards, label_smoothing=0.1)
    torch.testing.assert_close(loss.detach(), torch.tensor([100.0, 900.0]))
    loss.sum().backward()
    assert rewards.grad.isfinite().all()


def test_smoothing_is_least_where_preferences_are_as_certain_as_labels():
    difference = torch.linspace(-5, 5, 100_001, dtype=torch.float64)
    loss = bradley_terry_loss(difference, torch.zeros_like(difference), label_smoothing=0.25)
    assert difference[loss.argmin()].item() == pytest.approx(math.log(0.75 / 0.25), abs=1e-3)
