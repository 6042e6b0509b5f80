import pytest
import torch
from peft import LoraConfig
from transformers import T5Config

from src.errors import ParleyError
from src.models.autocast import cast_once
from src.models.loading import model_from_config
from src.models.lora import add_lora
from src.models.policy import score_tokens
from src.models.reference import Reference
from src.models.responses import check_output_head, encode, encoder_is_frozen, output_head, response_states
from src.models.value_head import ValueHead
from src.modules.counts import PolicyParameterCount

LENGTHS = [7, 3, 5]


@pytest.fixture
def texts(model):
    """Queries padded as their architecture wants, responses padded on the right."""
    torch.manual_seed(0)
    query, response = torch.randint(5, 200, (3, 9)), torch.randint(5, 200, (3, 7))
    query_mask = torch.ones(3, 9, dtype=torch.long)
    if model.config.is_encoder_decoder:
        query_mask[1, 6:] = 0
    else:
        query_mask[1, :3] = 0
    response_mask = (torch.arange(7) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    return query, query_mask, response, response_mask


def alone(model, query, query_mask, response, row):
    """One row without any padding: logits and last hidden states that predict its response."""
    prompt, answer = query[row, query_mask[row].bool()][None], response[row, : LENGTHS[row]][None]
    if model.config.is_encoder_decoder:
        start = torch.tensor([[model.config.decoder_start_token_id]])
        out = model(
            input_ids=prompt, decoder_input_ids=torch.cat([start, answer[:, :-1]], 1), output_hidden_states=True
        )
        return out.logits[0], out.decoder_hidden_states[-1][0]
    out = model(input_ids=torch.cat([prompt, answer], 1), output_hidden_states=True)
    span = slice(prompt.shape[1] - 1, -1)
    return out.logits[0, span], out.hidden_states[-1][0, span]


@torch.no_grad()
def test_states_and_head_give_the_models_own_logits(model, texts):
    query, query_mask, response, _ = texts
    states = response_states(model, *texts)
    logits = output_head(model)(states.head_input)
    assert states.head_input.shape[:2] == response.shape
    for row, length in enumerate(LENGTHS):
        expected, hidden = alone(model, query, query_mask, response, row)
        torch.testing.assert_close(logits[row, :length], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(states.last_hidden[row, :length], hidden, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_encoders_output_can_be_given(model, texts):
    hidden = encode(model, *texts[:2])
    assert (hidden is None) != model.config.is_encoder_decoder
    given, computed = response_states(model, *texts, hidden), response_states(model, *texts)
    assert torch.equal(given.head_input, computed.head_input)


def test_an_unknown_step_after_the_head_is_refused(model):
    check_output_head(model, 7)
    model.register_forward_hook(lambda _m, _i, out: out.__setitem__("logits", out.logits * 3))
    with pytest.raises(ParleyError, match="after the output head"):
        check_output_head(model, 7)


def test_bart_s_bias_is_part_of_the_head(base):
    from src.models.loading import load_model

    model = load_model(base("bart"))
    model.final_logits_bias.normal_()
    check_output_head(model, 7)


def test_the_value_head_starts_at_zero_and_answers_in_float32():
    head = ValueHead(8)
    assert head(torch.randn(2, 3, 8)).abs().sum() == 0
    assert head(torch.randn(2, 3, 8, dtype=torch.bfloat16)).dtype == torch.float32
    head(torch.ones(2, 3, 8)).sum().backward()
    assert head.layers[0].weight.grad.tolist() == [[6.0] * 8]


def test_the_value_head_computes_in_float32_under_autocast():
    head, hidden = ValueHead(64), torch.randn(5, 64)
    torch.nn.init.normal_(head.layers[0].weight)
    expected = (hidden.double() @ head.layers[0].weight[0].double()).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(head(hidden), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("precision", ["mixed", "true"])
def test_log_probabilities_are_a_float32_heads_whatever_the_trunk_computes_in(
    model, texts, targets, adapted, precision
):
    head = model.get_output_embeddings().weight
    head.mul_(10)  # logits of a trained model's size, where bfloat16 has steps of 0.06
    if adapted:  # then the head is frozen, and `cast_once` would round it
        model = add_lora(model, LoraConfig(r=4, target_modules=targets))
    if precision == "true":
        model = model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "mixed"):
        check_output_head(model, 7)
        with cast_once(model, frozen_only=True, spare_head=True):
            states = response_states(model, *texts)
            scored = score_tokens(model, *texts).logprobs
    head = model.get_output_embeddings().weight  # tied ones are read through the model
    logits = states.head_input.double() @ head.double().T
    expected = logits.log_softmax(-1).gather(-1, texts[2].unsqueeze(-1)).squeeze(-1)
    assert scored.dtype == torch.float32
    torch.testing.assert_close(scored, (expected * texts[3]).float(), rtol=1e-5, atol=1e-4)


def test_the_published_recipe_has_3_539_713_trainable_parameters_of_251_117_569():
    config = T5Config.from_dict(  # google/flan-t5-base
        {
            "vocab_size": 32128,
            "d_model": 768,
            "d_kv": 64,
            "d_ff": 2048,
            "num_layers": 12,
            "num_heads": 12,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        }
    )
    with torch.device("meta"):
        model = add_lora(model_from_config(config), LoraConfig(r=32, lora_alpha=32, target_modules=["q", "v"]))
        for is_continued in (False, True):
            reference = Reference(model, is_continued=is_continued)
            count = PolicyParameterCount.of(model, ValueHead(768), reference)
            assert (count.trainable, count.total) == (3_539_713, 251_117_569)
            assert count.reference.trainable == 0
            assert count.reference.total == 247_577_856 + is_continued * 3_538_944
    assert "3,539,713 of 251,117,569" in str(count)
    assert "reference: 0 of" in str(count)


def logits(model, texts):
    with torch.no_grad():
        return output_head(model)(response_states(model, *texts).head_input)


@pytest.mark.parametrize("trained", ["whole", "fresh adapter", "continued adapter"])
def test_the_reference_is_the_policy_at_its_start_and_the_policy_is_untouched_by_it(model, texts, targets, trained):
    if trained != "whole":
        model = add_lora(model, LoraConfig(r=4, target_modules=targets))
    if trained == "continued adapter":
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    start = logits(model, texts)
    reference = Reference(model, is_continued=trained == "continued adapter")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    moved = logits(model, texts)
    with reference.active(model) as frozen:
        assert torch.equal(logits(frozen, texts), start)
    assert not torch.equal(moved, start)
    assert torch.equal(logits(model, texts), moved)
    assert [parameter for parameter in model.parameters() if parameter.requires_grad] == parameters
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not reference.state_dict()
    if trained == "fresh adapter":
        assert not list(reference.parameters())


def test_the_encoder_is_frozen_only_where_nothing_in_it_trains(base):
    from src.models.loading import load_model

    assert not encoder_is_frozen(load_model(base("t5")))
    everywhere = add_lora(load_model(base("t5")), LoraConfig(r=2, target_modules=["q"]))
    assert not encoder_is_frozen(everywhere)
    decoder = add_lora(load_model(base("t5")), LoraConfig(r=2, target_modules=r"decoder\..*\.q"))
    assert encoder_is_frozen(decoder)
    assert not encoder_is_frozen(load_model(base("gpt2")))
