"""Where sampling is restricted, the mean log-ratio is a KL still: over what could be drawn."""

import copy

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, LogitsProcessorList

from src.models.policy import score_tokens
from src.models.rollout import RolloutOptions, sample_responses

EOS, VOCABULARY = 2, 24


class Banned:
    """A logits processor that forbids tokens, after one of their number others."""

    def __call__(self, input_ids, scores):
        scores[:, [5, 6]] = -torch.inf
        scores[(input_ids[:, -1:] % 2 == 1).any(-1), 7] = -torch.inf
        return scores


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = BartConfig(**sizes, **heads, max_position_embeddings=64, init_std=0.5)
    return BartForConditionalGeneration(config).eval()


@pytest.fixture
def flatter(reference):
    """A policy with half the logits."""
    policy = copy.deepcopy(reference)
    with torch.no_grad():
        norm = policy.model.decoder.layers[-1].final_layer_norm
        norm.weight.mul_(0.5)
        norm.bias.mul_(0.5)
    return policy


def queries(rows):
    ids = torch.randint(4, VOCABULARY, (1, 8), generator=torch.Generator().manual_seed(7)).expand(rows, -1)
    return ids, torch.ones_like(ids)


def log_ratios(policy, reference, banned=None, rows=1024, **restrictions):
    """Of each of many answers to one prompt, log-probability under the policy minus under the reference."""
    options = RolloutOptions(**({"output_min_length": 4, "output_max_length": 4, "min_new_tokens": 0} | restrictions))
    answers = sample_responses(
        policy,
        *queries(rows),
        options,
        eos_token_ids=[EOS],
        pad_token_id=1,
        banned=LogitsProcessorList([banned] if banned else []),
        generator=torch.Generator().manual_seed(1),
    )
    scored = {"drawable": answers.drawable, "temperature": options.temperature}
    with torch.no_grad():
        given = (*queries(rows), answers.ids, answers.mask)
        ours, theirs = (score_tokens(model, *given, **scored).logprobs for model in (policy, reference))
    return answers, (ours - theirs).sum(-1), ours


@pytest.mark.parametrize("bias", [2.0, 6.0])
@pytest.mark.parametrize("restrictions", [{"min_new_tokens": 4}, {"min_new_tokens": 4, "top_p": 0.8}])
def test_nothing_that_can_be_drawn_changed(reference, bias, restrictions):
    policy = copy.deepcopy(reference)
    policy.final_logits_bias[0, EOS] += bias
    _, ratios, _ = log_ratios(policy, reference, **restrictions)
    assert ratios.abs().max() < 1e-4


def test_a_banned_word_is_no_difference_either(reference):
    policy = copy.deepcopy(reference)
    policy.final_logits_bias[0, 5] += 6
    answers, ratios, _ = log_ratios(policy, reference, Banned())
    assert not torch.isin(answers.ids, torch.tensor([5, 6])).any()
    assert ratios.abs().max() < 1e-4


CASES = [
    {"min_new_tokens": 2},
    {"top_k": 5},
    {"top_k": 2, "min_new_tokens": 2},
    {"top_p": 0.9},
    {"top_p": 0.6, "temperature": 1.5},
    {"top_k": 9, "top_p": 0.8, "temperature": 0.7},
    {"banned": True, "top_k": 4},
]


def name(case):
    return "-".join(f"{key}={value}" for key, value in case.items())


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_estimate_is_not_negative(flatter, reference, case):
    restrictions = {key: value for key, value in case.items() if key != "banned"}
    _, ratios, _ = log_ratios(flatter, reference, Banned() if "banned" in case else None, **restrictions)
    assert ratios.mean() > -3 * ratios.std() / len(ratios) ** 0.5
    assert ratios.std() > 0


def restricted(logits, time, previous, case):
    """Log-probabilities over what may be drawn, token by token as the options' documentation has it."""
    logits = logits.double() / case.get("temperature", 1.0)
    allowed = set(range(VOCABULARY))
    if time < case.get("min_new_tokens", 0):
        allowed.discard(EOS)
    if "banned" in case:
        allowed -= {5, 6} | ({7} if previous % 2 == 1 else set())
    order = sorted(allowed, key=lambda token: -logits[token].item())
    order = order[: case.get("top_k") or None]
    shares = logits[order].softmax(-1)
    before = shares.cumsum(-1) - shares
    order = [token for token, mass in zip(order, before.tolist(), strict=True) if mass < case.get("top_p", 1.0)]
    return dict(zip(order, logits[order].log_softmax(-1).tolist(), strict=True))


@pytest.mark.parametrize("case", CASES, ids=name)
def test_scores_are_those_of_the_distribution_that_was_sampled_from(flatter, reference, case):
    """Against the whole distribution by brute force; what the model says is transformers' own forward pass."""
    restrictions = {key: value for key, value in case.items() if key != "banned"}
    answers, ratios, ours = log_ratios(
        flatter, reference, Banned() if "banned" in case else None, rows=24, **restrictions
    )
    start = torch.full((24, 1), flatter.generation_config.decoder_start_token_id)
    inputs = {"input_ids": queries(24)[0], "decoder_input_ids": torch.cat([start, answers.ids[:, :-1]], dim=1)}
    with torch.no_grad():
        policy_logits, reference_logits = (model(**inputs).logits for model in (flatter, reference))
    for row in range(24):
        difference = 0.0
        for time in range(int(answers.mask[row].sum())):
            previous = int(answers.ids[row, time - 1]) if time else 0
            token = int(answers.ids[row, time])
            sampled_from = restricted(policy_logits[row, time], time, previous, case)
            assert ours[row, time].item() == pytest.approx(sampled_from[token], abs=1e-4)
            kept = list(sampled_from)
            theirs = (reference_logits[row, time].double() / case.get("temperature", 1.0))[kept].log_softmax(-1)
            difference += sampled_from[token] - theirs[kept.index(token)].item()
        assert ratios[row].item() == pytest.approx(difference, abs=1e-3)


def test_the_probabilities_of_all_that_can_be_drawn_sum_to_one(flatter):
    answers, _, ours = log_ratios(flatter, flatter, top_k=2, output_min_length=2, output_max_length=2)
    totals = ours.sum(-1).exp().tolist()
    seen = {tuple(ids): total for ids, total in zip(answers.ids.tolist(), totals, strict=True)}
    assert len(seen) in (3, 4)  # three where EOS is one of the first two
    assert sum(seen.values()) == pytest.approx(1, abs=1e-5)
