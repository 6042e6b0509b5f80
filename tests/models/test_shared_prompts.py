"""Answers that share a prompt are what each is alone, in values and gradients; models that cannot do it are known."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, MistralConfig, MistralForCausalLM

from src.models.cpu import speed_up_on_cpu
from src.models.policy import answer_logprobs, score_groups, score_tokens
from src.models.shared_prompts import is_worth_sharing, keeps_answers_apart
from src.rl.drawable import Drawable


def batch():
    """Three prompts of other lengths with three answers each, of other lengths too."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randint(5, 200, (3, 18), generator=generator)
    answers = torch.randint(5, 200, (9, 6), generator=generator)
    query_mask, answer_mask = torch.ones_like(queries), torch.ones_like(answers)
    for row, padding in enumerate((0, 5, 11)):
        query_mask[row, :padding] = 0
    for row, length in enumerate((6, 3, 1, 2, 6, 4, 5, 5, 6)):
        answer_mask[row, length:] = 0
    return queries, query_mask, answers, answer_mask


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_each_answer_is_as_it_is_alone(tiny_base, kind, fast):
    model = AutoModelForCausalLM.from_pretrained(tiny_base(kind), dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if fast:
        speed_up_on_cpu(model)
    assert keeps_answers_apart(model)
    given = batch()
    assert is_worth_sharing(given[0], given[2])
    found = {}
    for share in (False, True):
        model.zero_grad()
        logprobs = answer_logprobs(model, *given, with_prompts=True, share=share)
        (logprobs.answers.square().sum() + logprobs.prompts.square().sum()).backward()
        found[share] = (logprobs, [parameter.grad.clone() for parameter in model.parameters()])
    (apart, gradients), (shared, others) = found[False], found[True]
    torch.testing.assert_close(shared.answers, apart.answers, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared.prompts, apart.prompts, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
    # brute force: the second prompt's third answer
    queries, query_mask, answers, answer_mask = given
    whole = torch.cat([queries[1][query_mask[1].bool()], answers[7][answer_mask[7].bool()]])
    logits = model(input_ids=whole[None]).logits[0].log_softmax(-1)
    expected = logits[:-1].gather(-1, whole[1:, None])[-5:, 0]
    torch.testing.assert_close(shared.answers[7, :5], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("time", [1, 2])
def test_answers_of_one_token(tiny_base, time):
    model = AutoModelForCausalLM.from_pretrained(tiny_base("gpt2"), dtype=torch.float32)
    queries, query_mask, answers, answer_mask = batch()
    given = (queries, query_mask, answers[:, :time], answer_mask[:, :time])
    with torch.no_grad():
        one, other = (answer_logprobs(model, *given, share=share) for share in (False, True))
    torch.testing.assert_close(other.answers, one.answers)


def test_models_that_look_elsewhere_are_known(tiny_base):
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    assert keeps_answers_apart(MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=None)))
    assert not keeps_answers_apart(MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=4)))
    assert not keeps_answers_apart(BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)))
    from src.models.loading import load_model

    assert not keeps_answers_apart(load_model(tiny_base("t5")))
    assert not is_worth_sharing(torch.zeros(1, 5), torch.zeros(2, 4))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("restricted", [False, True])
def test_a_group_s_figures_are_those_of_each_response(tiny_base, kind, restricted):
    model = AutoModelForCausalLM.from_pretrained(tiny_base(kind), dtype=torch.float32).eval()
    queries, query_mask, answers, answer_mask = batch()
    kept = torch.rand(9, 6, model.config.vocab_size, generator=torch.Generator().manual_seed(1)) < 0.5
    kept.scatter_(2, answers[..., None], True)
    parts = [(torch.arange(9), Drawable.of(kept[:, step])) for step in range(6)]
    drawable = Drawable.assemble(parts, 9, model.config.vocab_size, queries.device) if restricted else None
    sampled = {"drawable": drawable, "temperature": 0.7}
    with torch.no_grad():
        together = score_groups(model, queries, query_mask, answers, answer_mask, **sampled)
        each = (queries.repeat_interleave(3, 0), query_mask.repeat_interleave(3, 0))
        apart = score_tokens(model, *each, answers, answer_mask, **sampled)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one * answer_mask, other * answer_mask, rtol=1e-5, atol=1e-5)
