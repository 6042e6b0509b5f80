"""Frozen bases in 4 bits and in 16: the same as stock transformers and PEFT, in the bytes that they should take."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

from src.errors import ParleyError
from src.models.adapters import save_adapter
from src.models.autocast import cast_once
from src.models.fingerprint import base_record, fingerprint, keep_record
from src.models.loading import identify, load_model, load_tokenizer
from src.models.lora import add_lora, count_parameters, merged
from src.models.low_precision import bytes_held, check_quantization, elements, is_quantized
from src.models.responses import output_head
from src.models.stored_weights import stored_fingerprint
from src.modules import CausalLMModule, PPOModule, Seq2SeqModule
from src.modules.checkpoint import describe
from src.rewards import LengthReward

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[quantization]'")

TARGETS = {"t5": ["q", "v"], "bart": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "llama": ["q_proj", "down_proj"]}
KINDS = list(TARGETS)
IDS = torch.arange(10, 34).view(2, 12)
LABELS = IDS[:, 3:9].clone()


def nf4(**more):
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return BitsAndBytesConfig(**settings | more)


WAYS = {
    "nf4": {"quantization": nf4()},
    "fp4": {"quantization": nf4(bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=False)},
    "nf4 in bf16": {"quantization": nf4(bnb_4bit_compute_dtype="bfloat16"), "dtype": "bfloat16"},
    "bf16": {"dtype": "bfloat16"},
    "fp16": {"dtype": "float16"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_way = pytest.mark.parametrize("way", WAYS)


def lora(kind, **more):
    return LoraConfig(r=4, target_modules=TARGETS[kind], **more)


def module_of(kind, base, **options):
    make = Seq2SeqModule if kind in ("t5", "bart") else CausalLMModule
    module = make(str(base), **{"lora": lora(kind), "dropout": 0.0} | options)
    module.configure_model()
    return module


def stock(kind, base, quantization=None, dtype="float32"):
    """What transformers alone makes of a base."""
    auto = AutoModelForSeq2SeqLM if kind in ("t5", "bart") else AutoModelForCausalLM
    options = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": "cpu"}}
    return auto.from_pretrained(base, dtype=getattr(torch, dtype), **options)


def dtype_of(options):
    return getattr(torch, options["dtype"]) if "dtype" in options else None


def stir(model):
    """Give an adapter that changes nothing yet something to say."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def batch_of(kind):
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    return batch | {"labels": LABELS if kind in ("t5", "bart") else IDS}


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@every_kind
@every_way
def test_loss_and_gradients_are_those_of_stock_transformers_and_peft(kind, way, tiny_base):
    base = tiny_base(kind)
    module = module_of(kind, base, **WAYS[way])
    peer = get_peft_model(stock(kind, base, **WAYS[way]), lora(kind)).eval()
    stir(module.model)
    peer.load_state_dict({n: p for n, p in module.model.state_dict().items() if "lora_" in n}, strict=False)
    module.model.eval()  # without dropout
    total, count = module.loss_sum(batch_of(kind))
    (total / count).backward()
    theirs = peer(**batch_of(kind)).loss
    theirs.backward()
    # The loss over chosen positions is another order of the same sums, in 16 bits after another rounding.
    tolerance = 1e-5 if way in ("nf4", "fp4") else 2e-2
    assert (total / count).item() == pytest.approx(theirs.item(), rel=tolerance)
    ours, expected = gradients(module.model), gradients(peer)
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        assert gradient.dtype == torch.float32
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name].float(), rtol=0, atol=tolerance * max(scale, 1e-3))
    with torch.no_grad():
        inputs = {"decoder_input_ids": LABELS} if kind in ("t5", "bart") else {}
        assert torch.equal(module.model(IDS, **inputs).logits, peer(IDS, **inputs).logits)
    assert any(map(is_quantized, module.model.parameters())) == ("quantization" in WAYS[way])


@every_kind
def test_the_bytes_of_a_quantised_base(kind, tiny_base):
    """Half a byte a weight; a byte a block of 64 for its scale, of which 256 share a float32, a mean and a table."""
    base = tiny_base(kind)
    model = load_model(base, quantization=nf4())
    plain, expected, packed = load_model(base), 0, 0
    tables = set()
    for parameter in model.parameters():
        if not is_quantized(parameter):
            expected += 4 * parameter.numel()
            continue
        weights = elements(parameter)
        packed += weights
        blocks = math.ceil(weights / 64)
        expected += weights // 2 + blocks + 4 * math.ceil(blocks / 256) + 4
        for state in (parameter.quant_state, parameter.quant_state.state2):
            tables.add((id(state.code), 4 * state.code.numel()))
    assert bytes_held(model.parameters()) == expected + sum(size for _, size in tables)
    assert 0 < packed < count_parameters(model).total == count_parameters(plain).total
    assert bytes_held(plain.parameters()) == 4 * count_parameters(plain).total
    half = load_model(base, dtype=torch.bfloat16)
    kept = sum(p.numel() for p in half.parameters() if p.dtype == torch.float32)  # transformers', such as T5's wo
    assert bytes_held(half.parameters()) == 2 * count_parameters(plain).total + 2 * kept


@every_kind
@every_way
def test_it_is_known_as_the_base_that_its_files_hold(kind, way, tiny_base):
    module = module_of(kind, tiny_base(kind), **WAYS[way])
    exact = fingerprint(load_model(tiny_base(kind)))
    assert base_record(module.model).fingerprint == exact
    assert fingerprint(module.model) != fingerprint(module_of(kind, tiny_base(kind)).model)
    assert describe(module.model)["base"]["fingerprint"] == exact


@pytest.mark.parametrize(("kind", "untied"), [*((kind, False) for kind in KINDS), ("t5", True)])
@every_way
def test_it_is_told_from_its_files_without_a_copy_in_memory(kind, way, untied, tiny_base):
    base, options = tiny_base(kind, untied=untied), WAYS[way]
    model = load_model(base, quantization=options.get("quantization"), dtype=dtype_of(options))
    exact, other = load_model(base), load_model(tiny_base(kind, seed=1, untied=untied))
    assert stored_fingerprint(model, base_record(model)) == fingerprint(exact)
    model.name_or_path = str(tiny_base(kind, seed=1, untied=untied))
    elsewhere = replace(base_record(model), name=model.name_or_path)
    assert stored_fingerprint(model, elsewhere) is None  # these files are not what is in memory
    keep_record(model, elsewhere)
    assert identify(model).fingerprint == fingerprint(other)  # so they are read


def test_weights_that_are_not_finite_are_found_in_the_files(tiny_base, tmp_path):
    exact = load_model(tiny_base("llama"))
    with torch.no_grad():
        exact.model.layers[0].mlp.up_proj.weight[3, 5] = torch.nan
    exact.save_pretrained(tmp_path)
    with pytest.raises(ParleyError, match=r"not finite: .*up_proj.weight holds 1 NaN"):
        identify(load_model(tmp_path, quantization=nf4()))


@every_kind
@every_way
def test_what_is_trained_is_in_float32_and_alone_in_the_checkpoint(kind, way, tiny_base, tmp_path):
    module = module_of(kind, tiny_base(kind), lora=lora(kind, modules_to_save=["lm_head"]), **WAYS[way])
    trained = {f"model.{name}": p for name, p in module.model.named_parameters() if p.requires_grad}
    assert any("modules_to_save" in name for name in trained)
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    kept = module.kept_state(module.state_dict())
    assert kept.keys() - {"model.base_model.model.final_logits_bias"} == trained.keys()  # BART's, a buffer of zeros
    torch.save({"parley": describe(module.model), "state_dict": kept}, tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=True)
    module.loss_sum(batch_of(kind))[0].backward()
    assert all(parameter.grad is not None for parameter in trained.values())


@pytest.mark.parametrize(
    ("kind", "saved"), [("llama", "norm"), ("llama", "embed_tokens"), ("bart", "layernorm_embedding")]
)
@pytest.mark.parametrize("way", ["nf4 in bf16", "bf16"])
def test_a_module_that_is_trained_whole_changes_nothing_at_first(kind, saved, way, tiny_base):
    with_it = module_of(kind, tiny_base(kind), lora=lora(kind, modules_to_save=[saved]), **WAYS[way]).model.eval()
    without = module_of(kind, tiny_base(kind), **WAYS[way]).model.eval()
    inputs = {"decoder_input_ids": LABELS} if kind == "bart" else {}
    with torch.no_grad():
        ours, expected = with_it(IDS, **inputs).logits, without(IDS, **inputs).logits
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)
    assert ours.dtype == expected.dtype


@every_kind
@every_way
def test_the_adapter_is_not_folded_into_a_base_that_would_round_it(kind, way, tiny_base):
    model = module_of(kind, tiny_base(kind), **WAYS[way]).model.eval()
    stir(model)
    inputs = {"decoder_input_ids": LABELS} if kind in ("t5", "bart") else {}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = model(IDS, **inputs).logits
        with merged(model):
            assert torch.equal(model(IDS, **inputs).logits, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@every_kind
def test_exact_bases_are_still_folded_in(kind, tiny_base):
    model = add_lora(load_model(tiny_base(kind)), lora(kind))
    with merged(model):
        layers = [part for part in model.modules() if getattr(part, "merged", False)]
        assert layers


def test_autocast_leaves_quantised_layers_to_their_own_precision(tiny_base):
    model = module_of("bart", tiny_base("bart"), quantization=nf4()).model.eval()  # with biases
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(IDS, decoder_input_ids=LABELS).logits
        torch.clear_autocast_cache()
        with cast_once(model):
            assert torch.equal(model(IDS, decoder_input_ids=LABELS).logits, expected)
    assert {p.dtype for name, p in model.named_parameters() if name.endswith("fc1.bias")} == {torch.float32}


@every_way
def test_the_output_head_is_applied_in_float32(way, tiny_base):
    model = module_of("llama", tiny_base("llama"), **WAYS[way]).model
    head = model.get_output_embeddings()
    assert not is_quantized(head.weight)
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(output_head(model)(hidden), hidden @ head.weight.float().T)


@pytest.mark.parametrize("way", ["nf4", "bf16"])
def test_an_adapter_s_directory_is_trained_on(way, tiny_base, tmp_path):
    base, config = tiny_base("llama"), lora("llama", modules_to_save=["lm_head"])
    start = add_lora(load_model(base), config)
    stir(start)
    with torch.no_grad():
        start.get_output_embeddings().modules_to_save["default"].weight += 1e-3  # lost in bfloat16
    save_adapter(start, load_tokenizer(base), tmp_path / "adapter")
    module = CausalLMModule(str(tmp_path / "adapter"), **WAYS[way])
    module.configure_model()
    trained = {name: p for name, p in module.model.named_parameters() if p.requires_grad}
    expected = dict(start.named_parameters())
    assert len(trained) == 5
    for name, parameter in trained.items():
        assert torch.equal(parameter, expected[name]), name


def refusal(**options):
    return pytest.param(options.pop("said"), options, id=str(options.get("id", options))[:60])


@pytest.mark.parametrize(
    ("said", "options"),
    [
        refusal(said="^quantization is for a frozen base", quantization=nf4(), lora=None),
        refusal(said="^dtype is for a frozen base", dtype="bfloat16", lora=None),
        refusal(said="load_in_4bit: true", quantization=BitsAndBytesConfig(load_in_8bit=True)),
        refusal(said="load_in_4bit: true", quantization=BitsAndBytesConfig()),
        refusal(said="bnb_4bit_quant_type is 'nf5'; give nf4 or fp4", quantization=nf4(bnb_4bit_quant_type="nf5")),
        refusal(said="bnb_4bit_quant_storage", quantization=nf4(bnb_4bit_quant_storage="bfloat16")),
        refusal(said="cpu_offload", quantization=nf4(llm_int8_enable_fp32_cpu_offload=True)),
        refusal(said="output head", quantization=nf4(llm_int8_skip_modules=["q_proj"])),
        refusal(said="^lora.bias 'all'", quantization=nf4(), lora=lora("llama", bias="all")),
        refusal(
            said="^lora.init_lora_weights 'pissa'", dtype="bfloat16", lora=lora("llama", init_lora_weights="pissa")
        ),
        refusal(
            said="^lora.init_lora_weights 'olora'", quantization=nf4(), lora=lora("llama", init_lora_weights="olora")
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(said, options, tiny_base):
    with pytest.raises(ParleyError, match=said) as refused:
        module_of("llama", tiny_base("llama"), **options)
    assert "\n" not in str(refused.value)


def test_a_gguf_file_is_quantised_already():
    with pytest.raises(ParleyError, match=r"some\.gguf is quantised already"):
        check_quantization(nf4(), "some.gguf")


def test_an_untied_head_is_not_quantised_either(tiny_base):
    with pytest.raises(ParleyError, match="output head"):
        load_model(tiny_base("t5", untied=True), quantization=nf4(llm_int8_skip_modules=["wo"]))


def test_a_base_that_is_quantised_already(tiny_base, tmp_path):
    load_model(tiny_base("llama"), quantization=nf4()).save_pretrained(tmp_path / "packed")
    with pytest.raises(ParleyError, match="is quantised already"):
        load_model(tmp_path / "packed", quantization=nf4())


@pytest.mark.parametrize("way", ["nf4", "bf16"])
def test_a_trainer_that_would_round_the_adapter_is_refused(way, tiny_base, tmp_path):
    module = CausalLMModule(str(tiny_base("llama")), lora=lora("llama"), **WAYS[way])
    trainer = Trainer(
        accelerator="cpu", precision="bf16-true", max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(ParleyError, match="precision: 32-true or bf16-mixed"):
        trainer.fit(module, [{}])


def test_without_bitsandbytes_it_says_what_to_install(tiny_base, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ParleyError, match=r"quantization needs bitsandbytes: pip install -e '\.\[quantization\]'"):
        load_model(tiny_base("llama"), quantization=nf4())


def test_the_value_head_stays_in_float32(tiny_base):
    module = PPOModule(str(tiny_base("t5")), LengthReward(5), lora=lora("t5"), **WAYS["nf4 in bf16"])
    module.configure_model()
    assert {parameter.dtype for parameter in module.value_head.parameters()} == {torch.float32}
    assert isinstance(module.model, PeftModel)
