import pytest
import torch

from src.rl.drawable import Drawable
from src.rl.logprobs import kl_from_hidden, logprobs_from_hidden

VOCABULARY, HIDDEN = 37, 8


class RecordingHead(torch.nn.Linear):
    """An output head that notes how many tokens each call was given."""

    def __init__(self):
        super().__init__(HIDDEN, VOCABULARY)
        self.calls = []

    def forward(self, rows):
        self.calls.append(rows.shape[0])
        return super().forward(rows)


@pytest.fixture
def case():
    torch.manual_seed(6)
    hidden = torch.randn(3, 20, HIDDEN, requires_grad=True)
    labels = torch.randint(VOCABULARY, (3, 20))
    labels[0, 13:] = -100
    labels[2] = -100
    return hidden, labels, RecordingHead()


def naive(hidden, labels, head, temperature=1.0):
    logprobs = (head(hidden) / temperature).log_softmax(-1)
    chosen = logprobs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return chosen * (labels >= 0), -(logprobs.exp() * logprobs).sum(-1) * (labels >= 0)


@pytest.mark.parametrize("chunk_size", [1, 7, 33, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_slices_give_what_the_whole_gives_and_its_gradients(case, chunk_size, temperature):
    hidden, labels, head = case
    scores = logprobs_from_hidden(
        hidden, labels, head, temperature=temperature, entropy_requires_grad=True, chunk_size=chunk_size
    )
    expected = naive(hidden, labels, head, temperature)
    inputs = [hidden, head.weight, head.bias]
    weights = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(7))
    ours = torch.autograd.grad((weights[0] * scores.logprobs + weights[1] * scores.entropy).sum(), inputs)
    theirs = torch.autograd.grad((weights[0] * expected[0] + weights[1] * expected[1]).sum(), inputs)
    torch.testing.assert_close(scores.logprobs, expected[0])
    torch.testing.assert_close(scores.entropy, expected[1])
    for mine, whole in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)


def test_no_slice_is_larger_than_asked_for_and_padding_costs_nothing(case):
    hidden, labels, head = case
    scores = logprobs_from_hidden(hidden, labels, head, chunk_size=7)
    assert sum(head.calls) == 33  # of 60 places
    assert max(head.calls) == 7
    scores.logprobs.sum().backward()
    assert max(head.calls) == 7  # again in backward
    assert sum(head.calls) == 66


def saved_for_backward(compute):
    """The largest tensor and the total that autograd keeps, in elements."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        compute()
    return max(sizes), sum(sizes)


def test_what_autograd_keeps_does_not_grow_with_the_vocabulary():
    torch.manual_seed(8)
    hidden, head = torch.randn(4, 50, HIDDEN, requires_grad=True), torch.nn.Linear(HIDDEN, 5000)
    labels = torch.randint(5000, (4, 50))
    _, sliced = saved_for_backward(lambda: logprobs_from_hidden(hidden, labels, head, chunk_size=10))
    _, whole = saved_for_backward(lambda: naive(hidden, labels, head))
    assert whole > 200 * 5000
    assert sliced < 10 * 5000


def test_the_entropy_keeps_no_graph_unless_asked(case):
    hidden, labels, head = case
    assert not logprobs_from_hidden(hidden, labels, head).entropy.requires_grad
    assert logprobs_from_hidden(hidden, labels, head).logprobs.requires_grad
    with torch.no_grad():
        assert not logprobs_from_hidden(hidden, labels, head).logprobs.requires_grad


def test_without_any_label_the_head_is_still_part_of_the_graph(case):
    hidden, labels, head = case
    scores = logprobs_from_hidden(hidden, torch.full_like(labels, -100), head)
    assert not scores.logprobs.any()
    gradients = torch.autograd.grad(scores.logprobs.sum(), [hidden, head.weight])
    assert not any(gradient.any() for gradient in gradients)


def test_half_precision_logits_are_scored_in_float32():
    torch.manual_seed(9)
    logits = (10 * torch.randn(2, 5, 1000)).bfloat16()
    labels = torch.randint(1000, (2, 5))
    scores = logprobs_from_hidden(logits, labels, torch.nn.Identity(), chunk_size=3)
    exact = logits.double().log_softmax(-1)
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    torch.testing.assert_close(scores.logprobs.double(), exact.gather(-1, labels.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(scores.entropy.double(), -(exact.exp() * exact).sum(-1), rtol=1e-4, atol=1e-5)


def test_uniform_logits_have_the_entropy_of_the_vocabulary():
    scores = logprobs_from_hidden(torch.zeros(1, 2, 50), torch.tensor([[3, 49]]), torch.nn.Identity())
    assert scores.entropy.tolist() == [pytest.approx([3.912023] * 2, abs=1e-5)]
    assert scores.logprobs.tolist() == [pytest.approx([-3.912023] * 2, abs=1e-5)]


def test_autocast_gives_the_same_in_slices_as_at_once(case):
    hidden, labels, head = case
    with torch.autocast("cpu", torch.bfloat16):
        sliced = logprobs_from_hidden(hidden, labels, head, chunk_size=5)
        whole = logprobs_from_hidden(hidden, labels, head)
    torch.testing.assert_close(sliced.logprobs, whole.logprobs)
    gradients = [torch.autograd.grad(scores.logprobs.sum(), head.weight)[0] for scores in (sliced, whole)]
    torch.testing.assert_close(*gradients, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("chunk_size", [7, 1000])
def test_what_could_not_be_drawn_has_no_probability_and_no_gradient(case, chunk_size):
    hidden, labels, head = case
    kept = torch.rand(3, 20, VOCABULARY, generator=torch.Generator().manual_seed(1)) < 0.3
    kept.scatter_(-1, labels.clamp(min=0).unsqueeze(-1), True)
    scores = logprobs_from_hidden(
        hidden,
        labels,
        head,
        drawable=Drawable.of(kept),
        temperature=0.7,
        entropy_requires_grad=True,
        chunk_size=chunk_size,
    )
    logits, expected = head(hidden) / 0.7, torch.zeros(2, 3, 20)
    for place in (labels >= 0).nonzero().tolist():  # one by one, over the tokens that are left
        row, time = place
        left = logits[row, time][kept[row, time]].log_softmax(-1)
        expected[0, row, time] = left[kept[row, time].nonzero().flatten().tolist().index(int(labels[row, time]))]
        expected[1, row, time] = -(left.exp() * left).sum()
    torch.testing.assert_close(scores.logprobs, expected[0])
    torch.testing.assert_close(scores.entropy, expected[1])
    ours, theirs = (torch.autograd.grad((each[0] + each[1]).sum(), head.bias)[0] for each in (scores, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [7, 1000])
def test_kl_is_that_of_the_restricted_distributions(case, chunk_size):
    hidden, labels, head = case
    generator = torch.Generator().manual_seed(2)
    ref_hidden, ref_head = torch.randn(3, 20, HIDDEN, generator=generator), RecordingHead()
    kept = torch.rand(3, 20, VOCABULARY, generator=generator) < 0.3
    kept[..., 3] = True
    kl = kl_from_hidden(
        hidden,
        ref_hidden,
        labels >= 0,
        head,
        ref_head,
        drawable=Drawable.of(kept),
        temperature=0.7,
        truncate=lambda logits: logits.index_fill(-1, torch.tensor([0]), -torch.inf),
        chunk_size=chunk_size,
    )
    kept[..., 0] = False
    for row, time in (labels >= 0).nonzero().tolist():
        left = kept[row, time]
        ours, theirs = (
            torch.distributions.Categorical(logits=(each(states[row, time]) / 0.7)[left])
            for each, states in ((head, hidden), (ref_head, ref_hidden))
        )
        expected = torch.distributions.kl_divergence(ours, theirs).item()
        assert kl[row, time].item() == pytest.approx(expected, abs=1e-5)
    assert not kl[labels < 0].any()
    assert not kl_from_hidden(hidden, hidden, labels >= 0, head, head, drawable=Drawable.of(kept)).any()


def test_kl_is_float32_where_bfloat16_is_the_default(case):
    """As in a validation with `precision: bf16-true`."""
    hidden, labels, head = case
    ref_head, everything = RecordingHead(), Drawable.everything(*labels.shape)
    given = (hidden, hidden.flip(0), labels >= 0, head, ref_head)
    expected = kl_from_hidden(*given, drawable=everything)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = kl_from_hidden(*given, drawable=everything)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32
