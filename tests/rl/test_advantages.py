import pytest
import torch

from src.rl.advantages import compose_rewards, compute_advantages, gae, last_token_mask

LENGTHS = [9, 4, 1, 0, 6]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(4)
    rewards, values, logprobs, reference = torch.randn(4, 5, 9, generator=generator).unbind()
    mask = (torch.arange(9) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    return rewards, values, logprobs, reference, mask


def brute_force_gae(rewards, values, gamma, lam):
    """The definition, for one row without padding: a double loop over t and l."""
    length = len(rewards)
    result = []
    for t in range(length):
        total = 0.0
        for step in range(t, length):
            following = values[step + 1] if step + 1 < length else 0.0
            total += (gamma * lam) ** (step - t) * (rewards[step] + gamma * following - values[step])
        result.append(float(total))
    return result


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.99, 0.9), (1.0, 1.0), (0.9, 0.0)])
def test_gae_is_its_definition_row_by_row(batch, gamma, lam):
    rewards, values, _, _, mask = batch
    learned = compute_advantages(rewards, values, mask, gamma=gamma, lam=lam, whiten_advantages=False)
    for row, length in enumerate(LENGTHS):
        expected = brute_force_gae(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert learned.advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-5)
        returns = [a + v for a, v in zip(expected, values[row, :length].tolist(), strict=True)]
        assert learned.returns[row, :length].tolist() == pytest.approx(returns, abs=1e-5)
        assert not learned.advantages[row, length:].any()
        assert not learned.returns[row, length:].any()


def test_with_lambda_1_and_no_discount_returns_are_the_rewards_to_go(batch):
    rewards, values, _, _, _ = batch
    to_go = rewards.flip(-1).cumsum(-1).flip(-1)
    torch.testing.assert_close(gae(rewards, values, 1.0, 1.0) + values, to_go, rtol=0, atol=1e-5)


def test_the_score_lands_on_the_last_response_token(batch):
    _, _, logprobs, _, mask = batch
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    composed = compose_rewards(scores, logprobs, logprobs, mask, 0.2)
    expected = torch.zeros(5, 9)
    for row, length in enumerate(LENGTHS):
        if length:
            expected[row, length - 1] = scores[row]
    assert torch.equal(composed.rewards, expected)
    assert not composed.kl.any()  # the same policy: KL is 0, exactly


def test_the_last_token_is_found_behind_gaps_and_left_padding():
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert last_token_mask(mask).int().tolist() == [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_every_response_token_pays_for_its_kl(batch):
    _, _, logprobs, reference, mask = batch
    composed = compose_rewards(torch.zeros(5), logprobs, reference, mask, 0.3)
    torch.testing.assert_close(composed.rewards, -0.3 * (logprobs - reference) * mask)
    assert torch.equal(composed.rewards, composed.non_score_rewards)


def test_what_padding_holds_does_not_matter(batch):
    rewards, values, logprobs, reference, mask = batch
    scores, poison = torch.ones(5), torch.tensor(float("nan"))
    dirty = [torch.where(mask.bool(), each, poison) for each in (logprobs, reference)]
    clean = compose_rewards(scores, logprobs, reference, mask, 0.2)
    for ours, theirs in zip(compose_rewards(scores, *dirty, mask, 0.2), clean, strict=True):
        assert torch.equal(ours, theirs)
    dirty = [torch.where(mask.bool(), each, poison) for each in (rewards, values)]
    for whiten in (True, False):
        clean = compute_advantages(rewards, values, mask, whiten_rewards=whiten)
        for ours, theirs in zip(compute_advantages(*dirty, mask, whiten_rewards=whiten), clean, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("whiten_rewards", [True, False])
def test_more_padding_changes_nothing(batch, whiten_rewards):
    rewards, values, _, _, mask = batch
    plain = compute_advantages(rewards, values, mask, whiten_rewards=whiten_rewards)
    padded = [torch.cat([each, each.new_ones(5, 4)], dim=1) for each in (rewards, values)]
    longer = torch.cat([mask, mask.new_zeros(5, 4)], dim=1)
    wide = compute_advantages(*padded, longer, whiten_rewards=whiten_rewards)
    torch.testing.assert_close(wide.advantages[:, :9], plain.advantages, rtol=0, atol=1e-6)
    torch.testing.assert_close(wide.returns[:, :9], plain.returns, rtol=0, atol=1e-6)


def test_advantages_are_whitened_over_the_batch_and_returns_are_not(batch):
    rewards, values, _, _, mask = batch
    raw = compute_advantages(rewards, values, mask, whiten_advantages=False)
    white = compute_advantages(rewards, values, mask)
    chosen = white.advantages[mask.bool()]
    assert chosen.mean().item() == pytest.approx(0, abs=1e-6)
    assert chosen.std().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(raw.returns, white.returns)


def test_a_batch_of_empty_responses_gives_zeros():
    zeros = torch.zeros(2, 3)
    learned = compute_advantages(torch.ones(2, 3), torch.ones(2, 3), zeros, whiten_rewards=True)
    assert torch.equal(learned.advantages, zeros)
    assert torch.equal(learned.returns, zeros)
    assert not compose_rewards(torch.ones(2), zeros, zeros + 1, zeros, 0.2).rewards.any()
