"""CausalLMModule against transformers' own loss, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import (
    BloomConfig,
    GemmaConfig,
    GPTNeoXConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from src.contracts import IGNORE_INDEX
from src.datamodules.encoding import Collator
from src.datamodules.packing import PackedCollator
from src.errors import ParleyError
from src.models.loading import load_tokenizer, model_from_config
from src.models.saving import save_model
from src.modules import CausalLMModule, Seq2SeqModule

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
OTHERS: dict[str, Callable[..., PreTrainedConfig]] = {
    "qwen2": lambda **ids: Qwen2Config(**SIZES, num_key_value_heads=1, **ids),
    "gpt_neox": lambda **ids: GPTNeoXConfig(**SIZES, **ids),
    "gemma": lambda **ids: GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=16, **ids),
    "opt": lambda **ids: OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, word_embed_proj_dim=32, **ids
    ),
    "bloom": lambda **ids: BloomConfig(hidden_size=32, n_layer=2, n_head=2, **ids),
}


def rows(count: int = 9, seed: int = 0) -> list[dict]:
    """Encoded examples of uneven lengths."""
    generator = torch.Generator().manual_seed(seed)

    def ids(most: int) -> list[int]:
        length = int(torch.randint(1, most, (1,), generator=generator))
        return torch.randint(10, 290, (length,), generator=generator).tolist()

    return [
        {
            "id": str(number),
            "prompt": "",
            "references": [""],
            "prompt_ids": ids(12),
            "learned": [],
            "target_ids": [*ids(9), 1],
            "is_filler": False,
            "index": number,
        }
        for number in range(count)
    ]


def packed(examples: list[dict], *cuts: int) -> list[dict]:
    bounds = [0, *cuts, len(examples)]
    return [
        {"examples": examples[start:stop], "is_filler": False, "index": number}
        for number, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]


@pytest.fixture
def configured(tiny_base) -> Callable[..., CausalLMModule]:
    def make(base: str = "gpt2", **settings) -> CausalLMModule:
        module = CausalLMModule(str(base if Path(base).is_dir() else tiny_base(base)), **settings)
        module.configure_model()
        return module

    return make


@pytest.fixture
def other(tiny_base, tmp_path) -> Callable[[str], str]:
    """A base of an architecture that `parley init` does not make."""

    def make(name: str) -> str:
        tokenizer = load_tokenizer(tiny_base("gpt2"))
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
        torch.manual_seed(0)
        model = model_from_config(OTHERS[name](vocab_size=len(tokenizer), **ids))
        save_model(model, tokenizer, tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("learns_prompts", [False, True], ids=["response", "all"])
def test_loss_is_that_of_transformers(configured, architecture, learns_prompts):
    module = configured(architecture).eval()
    batch = Collator(2, is_encoder_decoder=False, learns_prompts=learns_prompts)(rows())
    loss_sum, count = module.loss_sum(batch)
    own = module.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    assert int(count) == int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    torch.testing.assert_close(loss_sum / count, own.loss)


def test_labels_choose_what_is_learned():
    examples = rows(3)
    response = Collator(2, is_encoder_decoder=False)(examples)["labels"]
    everything = Collator(2, is_encoder_decoder=False, learns_prompts=True)(examples)["labels"]
    for row, example in enumerate(examples):
        prompt, target = example["prompt_ids"], example["target_ids"]
        end = len(prompt) + len(target)
        assert response[row].tolist()[:end] == [IGNORE_INDEX] * len(prompt) + target
        assert everything[row].tolist()[1:end] == [*prompt, *target][1:]
        assert set(response[row].tolist()[end:]) | set(everything[row].tolist()[end:]) <= {IGNORE_INDEX}


def test_head_runs_over_learned_positions_only(configured):
    module = configured("llama")
    batch = Collator(2, is_encoder_decoder=False)(rows())
    seen = []
    module.model.lm_head.register_forward_hook(lambda _m, _i, output: seen.append(tuple(output.shape)))
    module.loss_sum(batch)  # and tries the head on a position, with its first batch
    seen.clear()
    module.loss_sum(batch)
    assert seen == [(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()), module.model.config.vocab_size)]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "gpt_neox", "gemma"])
@pytest.mark.parametrize("learns_prompts", [False, True], ids=["response", "all"])
def test_packed_loss_and_gradients_equal_the_unpacked(configured, other, architecture, learns_prompts):
    base = architecture if architecture in ("gpt2", "llama") else other(architecture)
    module, examples = configured(base, dropout=0.0), rows()

    def measure(batch):
        module.zero_grad()
        loss_sum, count = module.loss_sum(batch)
        (loss_sum / count).backward()
        return loss_sum / count, int(count), [p.grad.clone() for p in module.parameters() if p.grad is not None]

    loss, count, gradients = measure(Collator(2, is_encoder_decoder=False, learns_prompts=learns_prompts)(examples))
    batch = PackedCollator(2, learns_prompts=learns_prompts)(packed(examples, 4, 5))
    packed_loss, packed_count, packed_gradients = measure(batch)
    assert packed_count == count
    assert abs(packed_loss - loss) < 1e-5
    for ours, theirs in zip(packed_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packing_holds_with_any_attention_of_the_cpu(configured, attention):
    module, examples = configured("llama").eval(), rows()
    module.model.set_attn_implementation(attention)
    unpacked, count = module.loss_sum(Collator(2, is_encoder_decoder=False)(examples))
    in_rows, _ = module.loss_sum(PackedCollator(2)(packed(examples, 3)))
    assert abs(in_rows - unpacked) / count < 1e-5


def test_packing_holds_on_an_adapter_under_autocast(configured):
    module = configured("llama", lora=LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_sum, count = module.loss_sum(PackedCollator(2)(packed(rows(), 3)))
    assert torch.isfinite(loss_sum)
    assert count > 0
    assert module.training


@pytest.mark.parametrize("architecture", ["opt", "bloom"])
def test_an_architecture_that_cannot_pack_is_refused(configured, other, architecture):
    """OPT takes positions but looks across examples; BLOOM has none."""
    module = configured(other(architecture))
    with pytest.raises(ParleyError, match=f"type {architecture} does not keep packed examples apart; set .*packing"):
        module.loss_sum(PackedCollator(2)(packed(rows(), 3)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "lora",
    [
        PromptTuningConfig(num_virtual_tokens=2),
        PrefixTuningConfig(num_virtual_tokens=2),
        LoraConfig(r=4, target_modules=["q_proj"], alora_invocation_tokens=[11, 12]),
    ],
)
def test_an_adapter_that_sees_a_row_as_one_text_is_refused(configured, lora):
    """aLoRA would act from the last place in a row on that its text is at, whichever example that belongs to."""
    module = configured("llama", lora=lora)
    with pytest.raises(ParleyError, match=r"type llama, with virtual tokens or aLoRA, does not keep packed examples"):
        module.loss_sum(PackedCollator(2)(packed(rows(), 3)))


def test_a_model_that_looks_across_examples_is_refused(configured, monkeypatch):
    module = configured("gpt2")
    forward = module.model.forward

    def leaking(self=None, *, attention_mask=None, position_ids=None, **rest):
        mask = torch.ones_like(rest["input_ids"]) if attention_mask is None else attention_mask
        return forward(attention_mask=mask, position_ids=position_ids, **rest)

    monkeypatch.setattr(module.model, "forward", leaking)
    with pytest.raises(ParleyError, match="does not keep packed examples apart"):
        module.loss_sum(PackedCollator(2)(packed(rows(), 3)))


def test_fillers_teach_nothing(configured):
    module = configured("gpt2")
    examples = [{**row, "is_filler": True} for row in rows(2)]
    filler_row = [{"examples": rows(2), "is_filler": True, "index": 0}]
    for batch in (Collator(2, False, learns_prompts=True)(examples), PackedCollator(2)(filler_row)):
        loss_sum, count = module.loss_sum(batch)
        loss_sum.backward()
        assert (loss_sum.item(), count.item()) == (0.0, 0)


def test_end_is_learned_where_padding_is_the_same_token(configured):
    module = configured("gpt2").eval()
    end = 1
    losses = [module.loss_sum(Collator(pad, is_encoder_decoder=False)(rows())) for pad in (end, 2)]
    torch.testing.assert_close(*losses)
    batch = Collator(end, is_encoder_decoder=False)(rows())
    assert int((batch["labels"] == end).sum()) == len(rows())
    assert int(module.loss_sum(batch)[1]) == int((batch["labels"] >= 0).sum())


def test_smoothing_is_of_training_only(configured):
    module = configured("gpt2", label_smoothing=0.2, dropout=0.0)
    batch = Collator(2, is_encoder_decoder=False)(rows())
    targets = module.aligned_labels(batch)
    learned = targets >= 0
    logits, labels = module.model_logits(batch)[learned], targets[learned]
    smoothed = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.2)
    plain = F.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(module.loss_sum(batch)[0], smoothed)
    torch.testing.assert_close(module.eval().loss_sum(batch)[0], plain)


@pytest.mark.parametrize(
    ("module", "architecture", "advice"),
    [(CausalLMModule, "t5", "Seq2SeqModule"), (Seq2SeqModule, "llama", "CausalLM")],
)
def test_the_other_architecture_is_refused(tiny_base, module, architecture, advice):
    with pytest.raises(ParleyError, match=advice):
        module(str(tiny_base(architecture))).configure_model()
