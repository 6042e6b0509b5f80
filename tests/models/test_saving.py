import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, LlamaConfig, MarianConfig

from src.errors import ParleyError
from src.models.adapters import save_adapter
from src.models.loading import load_model, load_tokenizer, model_from_config
from src.models.lora import add_lora, merge_lora
from src.models.saving import save_model
from src.models.tokenizer import fit_embeddings
from src.models.tying import head_is_tied, load_state, untie_head

PEER = Path(__file__).parents[2] / ".peers" / "transformers-4.45"
TEXT = "Anna: at 7:30? 안녕하세요</s>"
TARGETS = {
    "t5": ["q", "v"],
    "t5-untied": ["q", "v"],
    "bart": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
}
SIDE = {"layers": 1, "ffn_dim": 32, "attention_heads": 2}
IDS = torch.arange(10, 34).view(2, 12)
READER = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, __version__
assert __version__.startswith("4.45"), __version__
found = {}
for directory in sys.argv[3:]:
    config = AutoConfig.from_pretrained(directory)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model, report = kind.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"], report
    ids = torch.arange(10, 34).view(2, 12)
    extra = {"decoder_input_ids": ids[:, :7]} if config.is_encoder_decoder else {}
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, **extra).logits
        made = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    found[directory] = {
        "logits": logits, "made": made, "ids": tokenizer(sys.argv[2]).input_ids,
        "specials": tokenizer.all_special_tokens, "template": tokenizer.chat_template,
    }
torch.save(found, sys.argv[1])
"""


def read_by_peer(directories: list[Path], result: Path) -> dict[str, dict]:
    """What transformers 4.45 makes of directories, in one process."""
    environment = {**os.environ, "PYTHONPATH": str(PEER), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", READER, str(result), TEXT, *map(str, directories)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=result.parent)
    assert done.returncode == 0, done.stderr
    return torch.load(result)


def made_by_road(road: str, kind: str, base, shake) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model that came by one of our roads, and one that is known to be right."""
    model = load_model(base(kind))
    if road == "head":
        untie_head(model)
    if road == "merge":
        model = add_lora(model, LoraConfig(r=2, target_modules=TARGETS[kind]))
    shake(model)
    if road == "merge":
        return merge_lora(model), model
    if road == "state":
        other = model_from_config(model.config)
        load_state(other, model.state_dict())
        return other, model
    return model, model


CASES = [(road, kind) for road in ("load", "merge", "state") for kind in TARGETS]
CASES += [("head", kind) for kind in TARGETS if kind != "t5-untied"]  # T5's is then untied but scaled


@pytest.fixture(scope="module")
def peer(base, logits, shake, tmp_path_factory):
    """Every road of every kind, saved by us and read by transformers 4.45."""
    if not PEER.is_dir():
        pytest.skip("needs transformers 4.45 in .peers: make peers")
    root, expected = tmp_path_factory.mktemp("peer"), {}
    for road, kind in CASES:
        model, right = made_by_road(road, kind, base, shake)
        tokenizer = load_tokenizer(base(kind))
        save_model(model, tokenizer, root / f"{road}-{kind}")
        made = model.generate(IDS, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        expected[road, kind] = {"logits": logits(right), "made": made, "tokenizer": tokenizer}
    found = read_by_peer([root / f"{road}-{kind}" for road, kind in CASES], root / "found.pt")
    return {(road, kind): (expected[road, kind], found[str(root / f"{road}-{kind}")]) for road, kind in CASES}


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.parametrize(("road", "kind"), CASES)
def test_transformers_4_45_gives_the_same_logits(road, kind, peer):
    ours, theirs = peer[road, kind]
    torch.testing.assert_close(theirs["logits"], ours["logits"], rtol=1e-5, atol=1e-5)
    assert torch.equal(theirs["made"], ours["made"])
    assert theirs["ids"] == ours["tokenizer"](TEXT).input_ids
    assert set(theirs["specials"]) == set(ours["tokenizer"].all_special_tokens)


def stock(directory: Path) -> torch.nn.Module:
    config = json.loads((directory / "config.json").read_text())
    kind = AutoModelForSeq2SeqLM if config.get("is_encoder_decoder") else AutoModelForCausalLM
    model, report = kind.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"]
    return model


def test_saved_model_gives_the_same_logits_in_stock_transformers_and_here(
    model, tokenizer, untied, logits, shake, tmp_path
):
    shake(model)
    before = logits(model)
    save_model(model, tokenizer, tmp_path / "saved")
    torch.testing.assert_close(logits(stock(tmp_path / "saved")), before, rtol=0, atol=0)
    again = load_model(tmp_path / "saved")
    torch.testing.assert_close(logits(again), before, rtol=0, atol=0)
    assert head_is_tied(again) is not untied
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] is not untied
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(TEXT).input_ids == tokenizer(TEXT).input_ids


@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2", "llama"], indirect=True)
def test_a_head_that_was_untied_stays_so_in_stock_transformers(model, tokenizer, logits, shake, tmp_path):
    untie_head(model)
    shake(model)
    save_model(model, tokenizer, tmp_path / "saved")
    torch.testing.assert_close(logits(stock(tmp_path / "saved")), logits(model), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(load_model(tmp_path / "saved")), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.peers
def test_rope_chat_template_and_extra_specials_reach_transformers_4_45(base, logits, tmp_path):
    if not PEER.is_dir():
        pytest.skip("needs transformers 4.45 in .peers: make peers")
    tokenizer = load_tokenizer(base("llama"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    source = load_model(base("llama")).config
    sizes = {k: getattr(source, k) for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    config = LlamaConfig(**sizes, num_attention_heads=4, rope_theta=500.0, bos_token_id=0, eos_token_id=1)
    torch.manual_seed(0)
    model = model_from_config(config)
    fit_embeddings(model, tokenizer)
    save_model(model, tokenizer, tmp_path / "saved")
    (peer,) = read_by_peer([tmp_path / "saved"], tmp_path / "found.pt").values()
    torch.testing.assert_close(peer["logits"], logits(model), rtol=1e-5, atol=1e-5)
    assert peer["template"] == tokenizer.chat_template
    assert "<turn>" in peer["specials"]
    assert "<turn>" in load_tokenizer(tmp_path / "saved").all_special_tokens
    assert load_tokenizer(tmp_path / "saved").chat_template == tokenizer.chat_template


@pytest.mark.slow
@pytest.mark.peers
def test_marian_reaches_transformers_4_45_with_its_positions(base, logits, shake, tmp_path):
    if not PEER.is_dir():
        pytest.skip("needs transformers 4.45 in .peers: make peers")
    tokenizer = load_tokenizer(base("bart"))
    sizes = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in SIDE.items()}
    ids = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = MarianConfig(vocab_size=len(tokenizer), d_model=32, max_position_embeddings=64, **sizes, **ids)
    model = model_from_config(config).eval()
    shake(model)
    save_model(model, tokenizer, tmp_path / "saved")
    (peer,) = read_by_peer([tmp_path / "saved"], tmp_path / "found.pt").values()
    torch.testing.assert_close(peer["logits"], logits(model), rtol=1e-5, atol=1e-5)


def test_adapter_loads_in_stock_peft_and_here(kind, model, tokenizer, targets, base, logits, shake, tmp_path):
    adapted = add_lora(model, LoraConfig(r=2, target_modules=targets))
    shake(adapted, "lora_")
    before = logits(adapted)
    save_adapter(adapted, tokenizer, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base(kind).resolve())
    theirs = PeftModel.from_pretrained(stock(base(kind)), tmp_path / "adapter")
    torch.testing.assert_close(logits(theirs), before, rtol=0, atol=0)
    ours = load_model(tmp_path / "adapter", is_trainable=True)
    torch.testing.assert_close(logits(ours), before, rtol=0, atol=0)
    assert all(p.requires_grad == ("lora_" in name) for name, p in ours.named_parameters())
    assert load_tokenizer(tmp_path / "adapter")(TEXT).input_ids == tokenizer(TEXT).input_ids


def test_adapter_on_grown_embeddings_comes_back(base, logits, shake, tmp_path):
    model, tokenizer = load_model(base("gpt2")), load_tokenizer(base("gpt2"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    fit_embeddings(model, tokenizer)
    adapted = add_lora(model, LoraConfig(r=2, target_modules=["c_attn"]))
    shake(adapted, "lora_")
    save_adapter(adapted, tokenizer, tmp_path / "adapter")
    torch.testing.assert_close(logits(load_model(tmp_path / "adapter")), logits(adapted), rtol=0, atol=0)


def test_adapter_for_another_base_is_refused_with_both_names(base, shake, tmp_path):
    tokenizer = load_tokenizer(base("gpt2"))
    adapted = add_lora(load_model(base("gpt2")), LoraConfig(r=2, target_modules=["c_attn"]))
    save_adapter(adapted, tokenizer, tmp_path / "adapter")
    other = load_model(base("gpt2"))
    shake(other)
    save_model(other, tokenizer, tmp_path / "other")
    with pytest.raises(ParleyError) as error:
        load_model(tmp_path / "adapter", base_model=tmp_path / "other")
    assert str(base("gpt2").resolve()) in str(error.value)
    assert str(tmp_path / "other") in str(error.value)


def test_saving_is_whole_or_not_at_all_and_never_over_something(base, tmp_path, monkeypatch):
    model, tokenizer = load_model(base("gpt2")), load_tokenizer(base("gpt2"))
    target = tmp_path / "taken"
    target.mkdir()
    (target / "mine.txt").write_text("x")
    with pytest.raises(ParleyError, match="not empty"):
        save_model(model, tokenizer, target)
    monkeypatch.setattr(type(model), "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(ParleyError, match="disk full"):
        save_model(model, tokenizer, target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert (target / "mine.txt").read_text() == "x"
    monkeypatch.undo()
    save_model(model, tokenizer, target, overwrite=True)
    assert not (target / "mine.txt").exists()
    assert (target / "config.json").exists()
    with pytest.raises(ParleyError, match="is a file"):
        save_model(model, tokenizer, target / "config.json")
