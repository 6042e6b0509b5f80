import math

import pytest
import torch

from src.errors import ParleyError
from src.rl.kl import AdaptiveKLController, FixedKLController, kl_penalty, sequence_kl


@pytest.fixture
def distributions():
    generator = torch.Generator().manual_seed(1)
    policy = torch.randn(50, generator=generator).double().log_softmax(-1)
    reference = (policy + 0.3 * torch.randn(50, generator=generator).double()).log_softmax(-1)
    return policy, reference, (policy.exp() * (policy - reference)).sum()


@pytest.mark.parametrize("kind", ["kl", "k3"])
def test_the_unbiased_estimators_have_kl_as_their_expectation(distributions, kind):
    policy, reference, exact = distributions
    assert (policy.exp() * kl_penalty(policy, reference, kind)).sum().item() == pytest.approx(exact.item(), rel=1e-9)


def test_k3_has_less_variance_than_k1_and_mse_less_bias_for_near_policies(distributions):
    policy, reference, exact = distributions
    k1, k3 = kl_penalty(policy, reference, "kl"), kl_penalty(policy, reference, "k3")
    variance = [(policy.exp() * (k - exact).square()).sum() for k in (k1, k3)]
    assert variance[1] < variance[0]
    k2 = (policy.exp() * kl_penalty(policy, reference, "mse")).sum()
    assert k2.item() == pytest.approx(exact.item(), rel=0.1)


@pytest.mark.parametrize("scale", [1e-8, 1e-5, 1e-2, 1.0, 10.0])
def test_k3_is_never_negative(scale):
    difference = scale * torch.randn(10_000, generator=torch.Generator().manual_seed(2))
    k3 = kl_penalty(difference, torch.zeros_like(difference), "k3")
    assert (k3 >= 0).all()
    exact = torch.expm1(-difference.double()) + difference.double()
    torch.testing.assert_close(k3.double(), exact, rtol=1e-3, atol=1e-6 * scale)


def test_abs_is_the_magnitude_and_all_are_zero_for_equal_policies():
    logprobs, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-3.0, -0.5]])
    assert kl_penalty(logprobs, reference, "abs").tolist() == [[2.0, 1.5]]
    for kind in ("kl", "abs", "mse", "k3"):
        assert not kl_penalty(logprobs, logprobs, kind).any()


def test_an_unknown_estimator_is_named():
    with pytest.raises(ParleyError, match="no KL penalty 'full'; choose one of: kl, abs, mse, k3"):
        kl_penalty(torch.zeros(1), torch.zeros(1), "full")  # type: ignore[arg-type]


def test_sequence_kl_sums_response_tokens_only():
    kl = torch.tensor([[1.0, 2.0, float("nan")], [4.0, 5.0, 6.0]])
    assert sequence_kl(kl, torch.tensor([[1, 1, 0], [0, 0, 0]])).tolist() == [3.0, 0.0]


def test_the_adaptive_controller_follows_its_formula():
    controller, value = AdaptiveKLController(0.2, 6.0, 10_000), 0.2
    for current in [0.0, 3.0, 5.9, 6.0, 6.3, 9.0, 40.0, -2.0]:
        controller.update(current, 16)
        value *= 1 + max(-0.2, min(0.2, current / 6.0 - 1)) * 16 / 10_000
        assert controller.value == pytest.approx(value, rel=1e-12)


def test_the_adaptive_controller_steers_kl_to_its_target():
    """KL answers to the coefficient as 2 / coefficient: it settles at the coefficient that gives the target."""
    controller = AdaptiveKLController(0.05, target=6.0, horizon=1000)
    for _ in range(2000):
        controller.update(2 / controller.value, 16)
    assert 2 / controller.value == pytest.approx(6.0, rel=1e-3)


def test_a_kl_that_is_not_finite_leaves_the_coefficient():
    controller = AdaptiveKLController()
    for current in (math.nan, math.inf):
        controller.update(current, 16)
    assert controller.value == 0.2


@pytest.mark.parametrize("make", [lambda: AdaptiveKLController(0.2), lambda: FixedKLController(0.2)])
def test_a_controller_goes_on_from_its_state(make):
    straight, first = make(), make()
    for current in (9.0, 12.0):
        straight.update(current, 64)
    first.update(9.0, 64)
    second = make()
    second.load_state_dict(first.state_dict())
    second.update(12.0, 64)
    assert second.value == straight.value


def test_the_fixed_controller_stays():
    controller = FixedKLController(0.3)
    controller.update(1000.0, 1000)
    assert controller.value == 0.3
