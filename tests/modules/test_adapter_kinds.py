"""Every kind of adapter: trained, kept in a checkpoint, exported, loaded by stock PEFT and here, trained on by PPO."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VBLoRAConfig,
    VeraConfig,
)
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from src.datamodules import DialogSumDataModule
from src.errors import ParleyError
from src.inference.export import export
from src.inference.loading import FinishedModel, load_finished
from src.models.adapter_checks import base_is_whole
from src.models.adapters import save_adapter
from src.models.fingerprint import fingerprint
from src.models.generation import generate_ids
from src.models.generation_options import GenerationOptions
from src.models.loading import identify, load_model, load_tokenizer
from src.models.lora import add_lora, can_merge
from src.models.static_decoder import refuse_engine
from src.models.tying import base_model
from src.modules import CausalLMModule, DPOModule, PPOModule, Seq2SeqModule
from src.modules.checkpoint import describe, keep_adapter
from src.rewards import LengthReward
from src.serving.adapters import share
from src.serving.hosted import Hosted

IDS = torch.arange(10, 34).view(2, 12)
LINEAR = {"t5": "q", "gpt2": "c_attn", "llama": "down_proj", "bart": "fc2"}
NORM = {"t5": "layer_norm", "gpt2": "ln_1", "llama": "input_layernorm", "bart": "final_layer_norm"}
LORAS = {
    "lora": {},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "mica": {"init_lora_weights": "mica"},
    "biases": {"bias": "all"},
    "own biases": {"bias": "lora_only"},
    "dora": {"use_dora": True},
    "head": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": [11, 12]},
}
OTHERS = {
    "ia3": lambda kind: IA3Config(target_modules=[LINEAR[kind]], feedforward_modules=[]),
    "loha": lambda kind: LoHaConfig(r=2, target_modules=[LINEAR[kind]]),
    "lokr": lambda kind: LoKrConfig(r=2, target_modules=[LINEAR[kind]]),
    "boft": lambda kind: BOFTConfig(boft_block_size=4, target_modules=[LINEAR[kind]]),
    "oft": lambda kind: OFTConfig(oft_block_size=4, target_modules=[LINEAR[kind]]),
    "norms": lambda kind: LNTuningConfig(target_modules=[NORM[kind]]),
    "vera": lambda kind: VeraConfig(r=4, target_modules=[LINEAR[kind]]),
    "vblora": lambda kind: VBLoRAConfig(r=2, target_modules=[LINEAR[kind]], vector_length=8, num_vectors=16, topk=2),
    "only tokens": lambda kind: TrainableTokensConfig(token_indices=[11, 12]),
}
STARTED = {"alora": LoraConfig(r=4, target_modules=["down_proj"], alora_invocation_tokens=[14, 15])}
PROMPTS = {
    "prompt tuning": PromptTuningConfig(num_virtual_tokens=4),
    "p-tuning": PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16),
    "prefix tuning": PrefixTuningConfig(num_virtual_tokens=4),
}
WEIGHTS = [*LORAS, *OTHERS]
FOR_GPT2 = [*LORAS.keys() - {"olora"}, "ia3", "norms"]  # the others' layers are not made for its Conv1D
CASES = [(kind, method) for kind in ("t5", "llama") for method in WEIGHTS]
CASES += [("gpt2", method) for method in sorted(FOR_GPT2)] + [("bart", method) for method in ("lora", "biases")]
PROMPTED = [(kind, method) for kind in ("gpt2", "llama", "bart", "t5") for method in PROMPTS]


def config(method, kind):
    if method in LORAS:
        return LoraConfig(r=4, target_modules=[LINEAR[kind]], **LORAS[method])
    return (PROMPTS | STARTED)[method] if method in PROMPTS | STARTED else OTHERS[method](kind)


@torch.no_grad()
def logits(model):
    model.eval()
    extra = {"decoder_input_ids": IDS[:, :7]} if model.config.is_encoder_decoder else {}
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **extra).logits[:, -7:]


def train(module, steps=3):
    """A few steps towards one token, with weight decay so that everything that is trained moves."""
    trained = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
    extra = {"decoder_input_ids": IDS[:, :7]} if module.model.config.is_encoder_decoder else {}
    module.model.eval()
    for _ in range(steps):
        output = module.model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **extra).logits
        (-output.float().log_softmax(-1)[..., 7].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()


def checkpoint_of(module, path):
    state = keep_adapter(module.state_dict(), module, module.model)
    torch.save({"parley": describe(module.model), "state_dict": state}, path)
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "method"), CASES + PROMPTED)
def test_exported_it_gives_stock_pefts_logits_and_loads_here(kind, method, tiny_base, tmp_path):
    base, is_causal = tiny_base(kind), kind in ("gpt2", "llama")
    torch.manual_seed(0)
    module = (CausalLMModule if is_causal else Seq2SeqModule)(str(base), lora=config(method, kind))
    module.configure_model()
    start = logits(module.model)
    train(module)
    trained = logits(module.model)
    assert (trained - start).abs().max() > 1e-4
    path = checkpoint_of(module, tmp_path / "step.ckpt")
    if method != "biases":
        assert not any("embed" in name and "base_layer" in name for name in torch.load(path)["state_dict"])
    torch.manual_seed(1)  # what is drawn anew must not matter
    export(path, tmp_path / "adapter", merge=False, base_model=None, overwrite=False)
    stock = (AutoModelForCausalLM if is_causal else AutoModelForSeq2SeqLM).from_pretrained(base)
    peer = PeftModel.from_pretrained(stock, tmp_path / "adapter")
    torch.testing.assert_close(logits(peer), trained, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(load_model(tmp_path / "adapter")), trained, rtol=1e-5, atol=1e-5)
    finished = load_finished(str(path), device="cpu").model  # what `generate` loads, folded in where it can be
    torch.testing.assert_close(logits(finished), trained, rtol=1e-3, atol=1e-3)
    if can_merge(peer):
        export(path, tmp_path / "whole", merge=True, base_model=None, overwrite=False)
        torch.testing.assert_close(logits(load_model(tmp_path / "whole")), trained, rtol=1e-3, atol=1e-3)
    if method in WEIGHTS:  # trained on by PPO, held to what was exported
        policy = PPOModule(str(tmp_path / "adapter"), LengthReward(5))
        policy.configure_model()
        train(policy)
        with policy.reference.active(policy.model) as reference:
            torch.testing.assert_close(logits(reference), trained, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_ppos_reference_stays_where_it_was_whatever_is_trained(kind, method, tiny_base):
    torch.manual_seed(0)
    module = PPOModule(str(tiny_base(kind)), LengthReward(5), lora=config(method, kind))
    module.configure_model()
    start = logits(module.model)
    train(module)
    assert (logits(module.model) - start).abs().max() > 1e-3
    with module.reference.active(module.model) as reference:
        torch.testing.assert_close(logits(reference), start, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_a_base_rounded_for_training_is_known_by_its_file(method, dtype, tiny_base, tmp_path):
    base = tiny_base("gpt2")
    assert identify(load_model(base, dtype=dtype)).fingerprint == fingerprint(load_model(base))
    module = CausalLMModule(str(base), lora=config(method, "gpt2"))
    torch.set_default_dtype(dtype)  # as Lightning does for bf16-true
    try:
        module.configure_model()
    finally:
        torch.set_default_dtype(torch.float32)
    path = checkpoint_of(module, tmp_path / "step.ckpt")
    export(path, tmp_path / "adapter", merge=False, base_model=None, overwrite=False)
    torch.testing.assert_close(
        logits(load_model(tmp_path / "adapter")), logits(module.model.float()), rtol=0.05, atol=0.05
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", PROMPTS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_prompt_tuning_learns_the_wanted_tokens_of_a_decoder_only_model(kind, method, tiny_base):
    module = CausalLMModule(str(tiny_base(kind)), lora=config(method, kind))
    module.configure_model()
    labels = IDS.clone()
    labels[:, :5] = -100
    labels[1, 9:] = -100
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": labels}
    module.eval()
    everything = module.model(input_ids=IDS, attention_mask=batch["attention_mask"]).logits[:, -12:]
    wanted = [(row, place) for row in range(2) for place in range(11) if labels[row, place + 1] != -100]
    logits = torch.stack([everything[row, place] for row, place in wanted])
    targets = torch.stack([labels[row, place + 1] for row, place in wanted])
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    module._knows_head = True
    for at_once in (module.logits_at_once, 5 * logits.shape[-1]):
        module.logits_at_once = at_once
        loss, count = module.loss_sum(batch)
        torch.testing.assert_close(loss, expected)
        assert int(count) == len(wanted)


def moved(base, method, kind="llama"):
    """A model whose adapter no longer does nothing."""
    torch.manual_seed(0)
    model = add_lora(load_model(base), config(method, kind)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.5 * torch.randn_like(parameter)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", [*LORAS, *OTHERS, *PROMPTS, *STARTED])
def test_a_base_that_is_called_whole_computes_all_of_its_adapter(method, tiny_base):
    model = moved(tiny_base("llama"), method)
    is_same = torch.equal(logits(base_model(model)), logits(model))
    assert base_is_whole(model) == is_same == (method not in PROMPTS | STARTED)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["lora", *PROMPTS, *STARTED])
def test_several_answers_are_one_answer_several_times(method, tiny_base):
    """With one token to draw from they cannot differ, though a prompt that is answered twice may be read once."""
    base = tiny_base("llama")
    model, tokenizer = moved(base, method), load_tokenizer(base)
    once = GenerationOptions(max_new_tokens=8, do_sample=True, top_k=1, seed=1)
    prompt = IDS[:, :6], torch.ones_like(IDS[:, :6])
    found = generate_ids(model, tokenizer, *prompt, replace(once, num_return_sequences=2))
    assert torch.equal(found, generate_ids(model, tokenizer, *prompt, once).repeat_interleave(2, 0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["prompt tuning", "alora"])
def test_what_the_base_does_not_compute_is_refused_where_the_base_is_called(method, tiny_base, tmp_path):
    base, wanted = str(tiny_base("llama")), config(method, "llama")
    for module in (PPOModule(base, LengthReward(5), lora=wanted), DPOModule(base, lora=wanted)):
        with pytest.raises(ParleyError, match=r"neither prompts nor aLoRA; use LoRA\.$"):
            module.configure_model()
    model, tokenizer = moved(base, method), load_tokenizer(base)
    with pytest.raises(ParleyError, match=r"neither an adapter's virtual tokens nor aLoRA; use plain\.$"):
        refuse_engine("x", model)
    with pytest.raises(ParleyError, match=r"^x has an adapter that does not act in its layers alone"):
        Hosted("x", FinishedModel(model, tokenizer, "x"), GenerationOptions())
    save_adapter(model, tokenizer, tmp_path / "adapter")
    with pytest.raises(ParleyError, match=r"adapter does not act in its layers alone .*`parley generate` has it\.$"):
        share(load_finished(base, device="cpu"), {"a": str(tmp_path / "adapter")})


def test_adalora_is_refused_before_training(tiny_base):
    module = CausalLMModule(str(tiny_base("gpt2")), lora=AdaLoraConfig(target_modules=["c_attn"], total_step=10))
    with pytest.raises(ParleyError, match="AdaLoRA would keep all its ranks"):
        module.configure_model()


@pytest.mark.filterwarnings("ignore")
def test_replicated_layers_are_exported_whole(tiny_base, tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj"], layer_replication=[(0, 1), (0, 1)])
    module = CausalLMModule(str(tiny_base("llama")), lora=lora)
    module.configure_model()
    train(module)
    path = checkpoint_of(module, tmp_path / "step.ckpt")
    export(path, tmp_path / "whole", merge=True, base_model=None, overwrite=False)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(logits(stock), logits(module.model), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, target_modules=["q"])])
def test_averaged_weights_are_refused_with_an_adapter(lora, tiny_base, sample, tmp_path):
    base = str(tiny_base("t5"))
    data = DialogSumDataModule(base, path=str(sample), batch_size=4, max_source_length=48, cache_dir=str(tmp_path))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[EMAWeightAveraging()],
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
    )
    if lora is None:
        trainer.fit(Seq2SeqModule(base), data)
        return
    with pytest.raises(ParleyError, match="EMAWeightAveraging could not be resumed with an adapter"):
        trainer.fit(Seq2SeqModule(base, lora=lora), data)
