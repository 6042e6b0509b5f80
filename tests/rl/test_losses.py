import math

import pytest
import torch

from src.rl.losses import policy_loss, ppo_loss, value_loss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    names = ("logprobs", "values", "entropy", "old_logprobs", "old_values", "advantages", "returns")
    drawn = dict(zip(names, torch.randn(7, 4, 6, generator=generator).double(), strict=True))
    drawn["logprobs"] = drawn["old_logprobs"] + 0.3 * drawn["logprobs"]
    for name in ("logprobs", "values", "entropy"):
        drawn[name].requires_grad_()
    drawn["mask"] = (torch.arange(6) < torch.tensor([6, 2, 0, 3]).unsqueeze(1)).long()
    return drawn


def naive(batch, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1, entropy_coef=0.0):
    """The formula token by token, in Python."""
    policy, value, entropy = [], [], []
    for row, column in batch["mask"].nonzero().tolist():
        at = {name: tensor[row, column] for name, tensor in batch.items()}
        ratio = torch.exp(at["logprobs"] - at["old_logprobs"])
        clipped = torch.clamp(ratio, 1 - cliprange, 1 + cliprange)
        policy.append(-torch.min(at["advantages"] * ratio, at["advantages"] * clipped))
        shift = torch.clamp(at["values"] - at["old_values"], -cliprange_value, cliprange_value)
        errors = (at["values"] - at["returns"]) ** 2, (at["old_values"] + shift - at["returns"]) ** 2
        value.append(0.5 * torch.max(*errors))
        entropy.append(at["entropy"])
    means = [sum(terms) / len(terms) for terms in (policy, value, entropy)]
    return means[0] + vf_coef * means[1] - entropy_coef * means[2]


@pytest.mark.parametrize("entropy_coef", [0.0, 0.3])
def test_the_loss_and_its_gradients_are_those_of_the_naive_formula(batch, entropy_coef):
    ours = ppo_loss(**batch, entropy_coef=entropy_coef)
    theirs = naive(batch, entropy_coef=entropy_coef)
    torch.testing.assert_close(ours.total, theirs)
    inputs = [batch["logprobs"], batch["values"]] + ([batch["entropy"]] if entropy_coef else [])
    for mine, expected in zip(
        torch.autograd.grad(ours.total, inputs), torch.autograd.grad(theirs, inputs), strict=True
    ):
        torch.testing.assert_close(mine, expected)


def test_the_first_step_has_ratio_1_and_the_policy_gradient(batch):
    """Before any update the ratio is 1, nothing is clipped, and the gradient is -A / n per token."""
    batch["logprobs"] = batch["old_logprobs"].clone().requires_grad_()
    loss = ppo_loss(**batch)
    assert loss.stats["policy/ratio_mean"] == loss.stats["policy/ratio_max"] == 1
    for name in ("policy/clipfrac", "policy/approxkl", "policy/policykl"):
        assert loss.stats[name] == 0
    (gradient,) = torch.autograd.grad(loss.policy, batch["logprobs"])
    torch.testing.assert_close(gradient, -batch["advantages"] * batch["mask"] / 11)


def test_a_clipped_token_has_no_gradient():
    log_ratio = torch.tensor([[0.5, -0.5, 0.5, -0.5]], requires_grad=True)
    advantages, mask = torch.tensor([[1.0, -1.0, -1.0, 1.0]]), torch.ones(1, 4)
    loss = policy_loss(log_ratio, advantages, mask)
    (gradient,) = torch.autograd.grad(loss.loss, log_ratio)
    assert (gradient[0, :2] == 0).all()  # it has gone far enough in the direction that pays
    assert (gradient[0, 2:] != 0).all()
    assert loss.clipfrac == 0.5


def test_a_value_that_moved_towards_its_target_beyond_the_clip_has_no_gradient():
    values = torch.tensor([[1.0, -1.0]], requires_grad=True)
    loss = value_loss(values, torch.zeros(1, 2), torch.tensor([[2.0, 2.0]]), torch.ones(1, 2))
    (gradient,) = torch.autograd.grad(loss.loss, values)
    assert gradient.tolist() == [[0.0, -1.5]]
    assert loss.loss.item() == pytest.approx(0.5 * (1.8**2 + 3.0**2) / 2)
    assert loss.clipfrac == 0.5


@pytest.mark.parametrize("jump", [4.0, 800.0])  # the second overflows exp
def test_a_minibatch_above_the_ratio_threshold_is_skipped_with_zero_gradients(batch, jump):
    batch["logprobs"] = (batch["old_logprobs"] + jump).requires_grad_()
    loss = ppo_loss(**batch, entropy_coef=0.1)
    assert loss.skipped
    assert loss.total == loss.policy == loss.value == 0
    gradients = torch.autograd.grad(loss.total, [batch["logprobs"], batch["values"], batch["entropy"]])
    for gradient in gradients:
        assert torch.equal(gradient, torch.zeros_like(gradient))
    assert loss.stats["policy/ratio_mean"] == pytest.approx(math.exp(jump) if jump < 80 else math.inf, rel=1e-9)
    assert loss.stats["skipped"] == 1
    assert not ppo_loss(**batch, ratio_threshold=None).skipped


def test_a_loss_that_is_not_finite_is_not_hidden_as_a_skip(batch):
    batch["logprobs"] = torch.full((4, 6), math.nan, requires_grad=True)
    loss = ppo_loss(**batch)
    assert not loss.skipped
    assert loss.total.isnan()


def test_what_padding_holds_does_not_matter(batch):
    clean = ppo_loss(**batch)
    poison = torch.tensor(math.nan, dtype=torch.double)
    dirty = {
        name: tensor if name == "mask" else torch.where(batch["mask"].bool(), tensor, poison)
        for name, tensor in batch.items()
    }
    loss = ppo_loss(**dirty)
    assert torch.equal(loss.total, clean.total)
    for name, figure in clean.stats.items():
        assert torch.equal(loss.stats[name], figure), name
    (gradient,) = torch.autograd.grad(loss.total, batch["logprobs"])
    assert torch.isfinite(gradient).all()


def test_a_minibatch_of_empty_responses_takes_part_with_zero_gradients(batch):
    batch["mask"] = torch.zeros_like(batch["mask"])
    loss = ppo_loss(**batch)
    gradients = torch.autograd.grad(loss.total, [batch["logprobs"], batch["values"]])
    assert loss.total == 0
    assert not any(gradient.any() for gradient in gradients)
