import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from src.errors import ParleyError
from src.models.fingerprint import base_record, fingerprint
from src.models.loading import load_model, load_tokenizer
from src.models.lora import (
    add_lora,
    can_merge,
    count_parameters,
    merge_lora,
    merged,
)
from src.models.saving import save_model
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


EMBEDDINGS = {
    "t5": [["embed_tokens"], ["encoder.embed_tokens"], ["lm_head"], ["relative_attention_bias"]],
    "t5-untied": [["embed_tokens"], ["lm_head"]],
    "bart": [["embed_tokens"], ["decoder.embed_tokens"], ["lm_head"]],
    "gpt2": [["wte"], ["lm_head"], ["wte", "lm_head"], ["wpe"], ["wte", "c_attn", "c_proj", "c_fc"]],
    "llama": [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"], "all-linear"],
}
WAYS = [
    {"trainable_token_indices": [11, 12, 300]},
    {"trainable_token_indices": [11, 12, 300], "ensure_weight_tying": True},
    {"bias": "all"},
    {"lora_bias": True},
]


def embedding_cases():
    """Kinds of model and LoRA settings that reach embeddings, heads or biases."""
    cases = []
    for kind, embeddings in EMBEDDINGS.items():
        usual = {"t5": "q", "gpt2": "c_attn"}.get(kind.partition("-")[0], "q_proj")
        for targets in embeddings:
            cases.append((kind, {"target_modules": targets}))
            if len(targets) == 1:
                cases.append((kind, {"target_modules": [usual], "modules_to_save": targets}))
                if kind in ("t5", "gpt2"):
                    cases.append((kind, {"target_modules": targets, "use_dora": True}))
        cases += [(kind, {"target_modules": [usual]} | way) for way in WAYS]
    return cases


@pytest.mark.parametrize(("kind", "options"), embedding_cases())
def test_folded_in_and_not_are_one_model_whatever_is_adapted(kind, options, base, logits, shake, tmp_path):
    adapted = add_lora(load_model(base(kind)), LoraConfig(r=4, **options))
    plain = logits(adapted)
    shake(adapted)
    before, weights = logits(adapted), copy.deepcopy(adapted.state_dict())
    assert (before - plain).abs().max() > 1e-3
    with merged(adapted):
        torch.testing.assert_close(logits(adapted), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(adapted), before, rtol=0, atol=0)
    assert all(torch.equal(value, weights[name]) for name, value in adapted.state_dict().items())
    if not can_merge(adapted):
        with pytest.raises(ParleyError, match=r"encoder-decoder's embeddings|layers without a bias"):
            merge_lora(adapted)
        return
    whole = merge_lora(adapted)
    torch.testing.assert_close(logits(whole), before, rtol=1e-4, atol=1e-4)
    save_model(whole, load_tokenizer(base(kind)), tmp_path / "whole")
    auto = AutoModelForSeq2SeqLM if whole.config.is_encoder_decoder else AutoModelForCausalLM
    torch.testing.assert_close(logits(auto.from_pretrained(tmp_path / "whole")), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        ("t5", {"target_modules": ["shared"]}, "on shared would do nothing"),
        ("bart", {"target_modules": ["q_proj"], "modules_to_save": ["shared"]}, "on shared would do nothing"),
        ("bart", {"target_modules": ["embed_positions"]}, "does not run on Bart"),
        ("llama", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, "cannot be copied"),
        (
            "t5",
            {"target_modules": ["q"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
            "does not run on T5",
        ),
        ("llama", {"target_modules": ["lm_head"], "use_dora": True}, "not finite"),
        ("gpt2", {"target_modules": ["c_attn"], "init_lora_weights": "pissa_niter_4"}, "could not be rebuilt"),
        ("gpt2", {"target_modules": ["c_attn"], "init_lora_weights": "eva"}, "could not be rebuilt"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_could_not_be_trained_or_kept_is_refused_before_training(kind, options, line, base):
    with pytest.raises(ParleyError, match=line) as error:
        add_lora(load_model(base(kind)), LoraConfig(r=4, **options))
    assert "\n" not in str(error.value)


def test_a_check_leaves_random_numbers_and_training_mode_alone(base):
    torch.manual_seed(0)
    model = load_model(base("t5")).train()
    adapted = add_lora(model, LoraConfig(r=4, target_modules=["q"], lora_dropout=0.5, init_lora_weights=False))
    torch.manual_seed(0)
    stock = get_peft_model(load_model(base("t5")), LoraConfig(r=4, target_modules=["q"], init_lora_weights=False))
    assert adapted.get_base_model().training
    assert not add_lora(load_model(base("t5")), LoraConfig(r=4, target_modules=["q"])).get_base_model().training
    for mine, theirs in zip(adapted.parameters(), stock.parameters(), strict=True):
        assert torch.equal(mine, theirs)


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


def test_the_record_is_of_the_base_as_it_was_read(model, targets, shake):
    plain = base_record(model).fingerprint
    assert plain == fingerprint(model)
    twin = copy.deepcopy(model)
    adapted = add_lora(model, LoraConfig(r=2, target_modules=targets, init_lora_weights="gaussian"))
    shake(adapted)
    assert base_record(adapted).fingerprint == plain
    with torch.no_grad():
        next(iter(twin.parameters()))[0, 0] += 1e-3
    assert fingerprint(twin) != plain


def test_fingerprint_tells_seeds_and_architectures_apart(base):
    values = {fingerprint(load_model(base(kind))) for kind in ("t5", "t5-untied", "gpt2", "llama", "bart")}
    assert len(values) == 5
