import pytest
import torch

from src.rl.masked import masked_mean, masked_moments, masked_whiten


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(8, 11, generator=generator)
    mask = torch.zeros(8, 11)
    for row, length in enumerate([11, 3, 1, 0, 7, 5, 0, 9]):
        mask[row, :length] = 1
    return values, mask


def test_statistics_are_those_of_the_selected_values(batch):
    values, mask = batch
    chosen = values[mask.bool()]
    torch.testing.assert_close(masked_mean(values, mask), chosen.mean())
    torch.testing.assert_close(masked_moments(values, mask).var, chosen.var())
    torch.testing.assert_close(masked_moments(values, mask, unbiased=False).var, chosen.var(unbiased=False))
    assert masked_moments(values, mask).size == len(chosen)


def test_mean_along_a_dimension_leaves_empty_rows_at_zero(batch):
    values, mask = batch
    means = masked_mean(values, mask, dim=1)
    for row in range(8):
        chosen = values[row][mask[row].bool()]
        assert means[row].item() == pytest.approx(chosen.mean().item() if len(chosen) else 0.0, abs=1e-6)


def test_whitened_values_have_mean_0_and_variance_1(batch):
    values, mask = batch
    whitened = masked_whiten(values * 7 + 100, mask)[mask.bool()]
    assert whitened.mean().item() == pytest.approx(0, abs=1e-5)
    assert whitened.var().item() == pytest.approx(1, abs=1e-4)
    kept = masked_whiten(values * 7 + 100, mask, shift_mean=False)[mask.bool()]
    assert kept.mean().item() == pytest.approx((values * 7 + 100)[mask.bool()].mean().item(), rel=1e-5)


def test_padding_never_reaches_a_statistic(batch):
    values, mask = batch
    poisoned = torch.where(mask.bool(), values, torch.tensor([float("nan"), float("inf")] * 44).view(8, 11))
    assert torch.equal(masked_mean(poisoned, mask), masked_mean(values, mask))
    assert torch.equal(masked_moments(poisoned, mask).var, masked_moments(values, mask).var)
    kept = mask.bool()
    assert torch.equal(masked_whiten(poisoned, mask)[kept], masked_whiten(values, mask)[kept])


def test_no_value_or_a_single_one_gives_finite_figures():
    values, mask = torch.randn(2, 3), torch.zeros(2, 3)
    assert masked_moments(values, mask) == (0, 0, 0)
    mask[0, 0] = 1
    assert masked_moments(values, mask).var == 0
    assert masked_whiten(values, mask)[0, 0] == 0


def test_large_offsets_lose_no_digits(batch):
    values, mask = batch
    exact = (values.double() + 4096)[mask.bool()].var()
    assert masked_moments(values + 4096, mask).var.item() == pytest.approx(exact.item(), rel=1e-3)
    shifted = (values + 4096)[mask.bool()]
    one_pass = shifted.square().mean() - shifted.mean().square()
    assert abs(one_pass - exact) > 0.01  # what the one-pass form would have given
