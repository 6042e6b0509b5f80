import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, TaskType

from src.errors import ParleyError
from src.models.fingerprint import fingerprint
from src.models.loading import load_model
from src.models.lora import (
    adapter_state,
    add_lora,
    count_parameters,
    load_adapter_state,
    merge_lora,
    merged,
)
from src.models.tying import head_is_tied


def test_task_type_follows_the_architecture_and_the_given_config_is_untouched(model, targets):
    config = LoraConfig(r=2, target_modules=targets)
    adapted = add_lora(model, config)
    expected = TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
    assert adapted.active_peft_config.task_type == expected
    assert config.task_type is None


@pytest.mark.parametrize("wanted", [["qq"], ["q", "qq"], r".*\.qq"])
def test_a_target_that_matches_nothing_is_named_with_some_that_would(base, wanted):
    with pytest.raises(ParleyError, match=r"qq matches no module.*some that would: q, ") as error:
        add_lora(load_model(base("t5")), LoraConfig(target_modules=wanted))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [{"bias": "some"}, {"r": 0}])
def test_what_peft_refuses_is_one_line(base, wrong):
    with pytest.raises(ParleyError, match=r"PEFT refuses this adapter: \S+") as error:
        add_lora(load_model(base("t5")), LoraConfig(target_modules=["q"], **wrong))
    assert "\n" not in str(error.value)


def test_all_linear_and_patterns_are_taken(base):
    for targets in ("all-linear", r"decoder\.block\.0\..*\.q"):
        assert count_parameters(add_lora(load_model(base("t5")), LoraConfig(r=2, target_modules=targets))).trainable


def test_merge_gives_the_same_logits_and_leaves_the_model(model, targets, untied, logits, shake):
    adapted = add_lora(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    plain = logits(adapted)
    shake(adapted, "lora_")
    before = logits(adapted)
    assert (before - plain).abs().max() > 1e-2
    whole = merge_lora(adapted)
    torch.testing.assert_close(logits(whole), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(adapted), before, rtol=0, atol=0)
    assert head_is_tied(whole) is not untied
    whole.tie_weights()
    torch.testing.assert_close(logits(whole), before, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name, _ in whole.named_parameters())
    assert count_parameters(whole).trainable == count_parameters(whole).total


def test_merging_an_adapter_on_a_tied_head_does_not_touch_the_embeddings(base, logits, shake):
    model = load_model(base("gpt2"))
    embeddings = model.transformer.wte.weight.clone()
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        adapted = add_lora(model, LoraConfig(r=4, target_modules=["lm_head"]))
    shake(adapted, "lora_")
    before = logits(adapted)
    whole = merge_lora(adapted)
    torch.testing.assert_close(logits(whole), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(whole.transformer.wte.weight, embeddings)


def test_merged_block_restores_every_bit_even_after_an_error(model, targets, logits, shake):
    adapted = add_lora(model, LoraConfig(r=4, target_modules=targets))
    shake(adapted, "lora_")
    before, state = logits(adapted), copy.deepcopy(adapted.state_dict())
    for _ in range(3):
        with merged(adapted):
            assert all(layer.merged for layer in adapted.modules() if hasattr(layer, "merged_adapters"))
            torch.testing.assert_close(logits(adapted), before, rtol=1e-4, atol=1e-4)
    with pytest.raises(ZeroDivisionError), merged(adapted):
        raise ZeroDivisionError
    for name, value in adapted.state_dict().items():
        assert torch.equal(value, state[name]), name
    torch.testing.assert_close(logits(adapted), before, rtol=0, atol=0)


def test_merged_leaves_alone_what_cannot_be_merged(base):
    with merged(load_model(base("t5"))):
        pass
    prompted = add_lora(load_model(base("gpt2")), PromptTuningConfig(num_virtual_tokens=4))
    with merged(prompted):
        pass
    with pytest.raises(ParleyError, match="PROMPT_TUNING cannot be merged"):
        merge_lora(prompted)


def test_other_adapters_merge_too(base, logits, shake):
    adapted = add_lora(load_model(base("t5-untied")), IA3Config(target_modules=["k", "v"], feedforward_modules=[]))
    shake(adapted, "ia3_")
    torch.testing.assert_close(logits(merge_lora(adapted)), logits(adapted), rtol=1e-4, atol=1e-4)


def test_adapter_state_holds_the_adapter_alone_and_goes_back(base, logits, shake):
    config = LoraConfig(r=2, target_modules=["q", "v"])
    source, other = (add_lora(load_model(base("t5-untied")), config) for _ in range(2))
    shake(source, "lora_")
    state = adapter_state(source)
    assert sum(value.numel() for value in state.values()) == count_parameters(source).trainable
    load_adapter_state(other, state)
    torch.testing.assert_close(logits(other), logits(source), rtol=0, atol=0)
    with pytest.raises(ParleyError, match="do not fit"):
        load_adapter_state(add_lora(load_model(base("t5-untied")), LoraConfig(r=2, target_modules=["q"])), state)
    with pytest.raises(ParleyError, match="do not fit"):
        load_adapter_state(add_lora(load_model(base("t5")), LoraConfig(r=3, target_modules=["q", "v"])), state)


def test_fingerprint_is_of_the_base_alone(model, targets, shake):
    plain = fingerprint(model)
    twin = copy.deepcopy(model)
    adapted = add_lora(model, LoraConfig(r=2, target_modules=targets))
    shake(adapted, "lora_")
    assert fingerprint(adapted) == plain
    with torch.no_grad():
        next(iter(twin.parameters()))[0, 0] += 1e-3
    assert fingerprint(twin) != plain


def test_fingerprint_ignores_modules_to_save(base):
    model = load_model(base("gpt2"))
    plain = fingerprint(model)
    assert fingerprint(add_lora(model, LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["ln_f"]))) == plain


def test_fingerprint_tells_seeds_and_architectures_apart(base):
    values = {fingerprint(load_model(base(kind))) for kind in ("t5", "t5-untied", "gpt2", "llama", "bart")}
    assert len(values) == 5
