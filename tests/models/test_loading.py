import json
import shutil

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BertConfig, MT5Config, PreTrainedTokenizerFast

from src.errors import ParleyError
from src.models import sources
from src.models.adapters import save_adapter
from src.models.config import is_encoder_decoder, load_config
from src.models.loading import load_model, load_tokenizer, model_from_config
from src.models.lora import add_lora
from src.models.saving import save_model
from src.models.tying import head_is_tied


@pytest.fixture
def copied(base, tmp_path):
    def copy(kind):
        return shutil.copytree(base(kind), tmp_path / kind)

    return copy


@pytest.fixture
def offline(monkeypatch):
    """As if the hub did not answer, whatever the machine has."""
    monkeypatch.setattr(sources, "hub_is_reachable", lambda: False)


def test_architecture_is_read_from_the_config(kind, model, base):
    assert is_encoder_decoder(base(kind)) is (kind in ("t5", "t5-untied", "bart"))
    assert model.can_generate()
    assert not model.training
    assert model.dtype == torch.float32


def test_dtype_is_what_is_asked_for(base):
    assert load_model(base("gpt2"), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_pytorch_bin_is_taken(copied, logits):
    directory = copied("gpt2")
    model = load_model(directory)
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    torch.testing.assert_close(logits(load_model(directory)), logits(model), rtol=0, atol=0)


def test_untied_directory_as_stock_transformers_5_writes_it(base, logits, shake, tmp_path):
    """It says `tie_word_embeddings: true` beside two matrices."""
    model = load_model(base("t5-untied"))
    shake(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    again = load_model(tmp_path)
    assert not head_is_tied(again)
    again.tie_weights()
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


def test_mt5_keeps_its_own_head(base, logits, shake, tmp_path):
    config = MT5Config(vocab_size=300, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4)
    model = model_from_config(config)
    shake(model)
    save_model(model, load_tokenizer(base("t5")), tmp_path / "mt5")
    again = load_model(tmp_path / "mt5")
    assert not head_is_tied(again)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("read", [load_config, load_tokenizer, load_model, is_encoder_decoder])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nowhere", "there is no model directory ./nowhere"),
        ("/no/such/place", "there is no model directory /no/such/place"),
        ("some/name-that-nobody-has", "neither a directory here nor in the local cache"),
    ],
)
def test_what_is_not_there_is_said_in_one_line_at_once(read, name, said):
    with pytest.raises(ParleyError, match=said) as error:
        read(name)
    assert "\n" not in str(error.value)


def test_one_probe_decides_whether_the_hub_is_asked(monkeypatch):
    import huggingface_hub

    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    sources.hub_is_reachable.cache_clear()
    try:
        for _ in range(3):
            with pytest.raises(ParleyError, match="cannot be reached"):
                load_model("some/name-that-nobody-has")
    finally:
        sources.hub_is_reachable.cache_clear()
    assert len(asked) == 1
    assert asked[0][1] <= 10


def test_a_file_is_not_a_directory(base):
    with pytest.raises(ParleyError, match="is a file; give the directory"):
        load_model(base("t5") / "config.json")


def test_a_directory_without_a_model(tmp_path):
    with pytest.raises(ParleyError, match=r"is not a model directory: it has no config.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "{", "the configuration of .* cannot be read"),
        ("config.json", '{"model_type": "nonesuch"}', "the configuration of .* cannot be read"),
        ("model.safetensors", "not safetensors", "the weights of .* cannot be read"),
        ("model.safetensors", None, "the weights of .* cannot be read"),
    ],
)
def test_broken_directories_are_one_line(copied, file, content, said):
    directory = copied("gpt2")
    (directory / file).unlink() if content is None else (directory / file).write_text(content)
    with pytest.raises(ParleyError, match=said) as error:
        load_model(directory)
    assert "\n" not in str(error.value)


def test_truncated_weights_and_missing_ones_are_refused(copied):
    from safetensors.torch import load_file, save_file

    directory = copied("gpt2")
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ParleyError, match="the weights of"):
        load_model(directory)
    (directory / "model.safetensors").write_bytes(whole)
    state = load_file(directory / "model.safetensors")
    state.pop("transformer.h.0.attn.c_attn.weight")
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParleyError, match=r"incomplete: 1 are missing, transformer.h.0.attn.c_attn.weight"):
        load_model(directory)


def test_weights_of_another_shape_are_refused(copied):
    directory = copied("gpt2")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"n_embd": 64}))
    with pytest.raises(ParleyError, match=r"do not fit its config.json: .* is \(\d+.*\) instead of \(\d+"):
        load_model(directory)


def test_weights_that_are_not_used_are_said_in_one_line(copied, caplog):
    from safetensors.torch import load_file, save_file

    directory = copied("gpt2")
    state = load_file(directory / "model.safetensors") | {"value_head.weight": torch.zeros(2)}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    load_model(directory)
    assert [record.getMessage() for record in caplog.records] == [
        f"1 weights of {directory} are not used, value_head.weight among them."
    ]


def test_neither_encoder_decoder_nor_decoder_only_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ParleyError, match="is a vit model, neither encoder-decoder nor decoder-only"):
        load_config(tmp_path)
    with pytest.raises(ParleyError, match="neither"):
        model_from_config(BertConfig(is_encoder_decoder=True))


def test_missing_tokenizer_is_one_line(kind, copied):
    directory = copied(kind)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    with pytest.raises(ParleyError, match=r"the tokenizer of|has no tokenizer") as error:
        load_tokenizer(directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind_of_weights", "tolerance"), [("F32", 1e-4), ("Q8_0", 0.05)])
def test_gguf_written_by_the_gguf_package(kind_of_weights, tolerance, base, tmp_path, logits, shake):
    gguf = pytest.importorskip("gguf")
    model = load_model(base("llama"))
    write_llama_gguf(gguf, model, load_tokenizer(base("llama")), tmp_path / "tiny.gguf", kind_of_weights)
    again = load_model(tmp_path, gguf_file="tiny.gguf")
    torch.testing.assert_close(logits(again), logits(model), rtol=tolerance, atol=tolerance)
    assert not is_encoder_decoder(tmp_path, "tiny.gguf")
    save_model(again, load_tokenizer(tmp_path, "tiny.gguf"), tmp_path / "plain")
    torch.testing.assert_close(logits(load_model(tmp_path / "plain")), logits(again), rtol=0, atol=0)
    assert "gguf" not in (tmp_path / "plain" / "config.json").read_text()
    tokenizer = load_tokenizer(tmp_path, "tiny.gguf")
    assert tokenizer.pad_token_id is not None
    assert tokenizer.add_tokens(["another"]) == 1
    assert len(load_tokenizer(tmp_path, "tiny.gguf")) == len(tokenizer) - 1  # the file is read once, and given anew
    adapted = add_lora(again, LoraConfig(r=2, target_modules=["q_proj"]))
    shake(adapted, "lora_")
    save_adapter(adapted, load_tokenizer(tmp_path, "tiny.gguf"), tmp_path / "adapter")
    torch.testing.assert_close(logits(load_model(tmp_path / "adapter")), logits(adapted), rtol=0, atol=0)
    theirs, ours = load_tokenizer(tmp_path / "adapter"), load_tokenizer(base("llama"))
    assert theirs("at 7:30? 좋아요").input_ids == ours("at 7:30? 좋아요").input_ids
    assert not is_encoder_decoder(tmp_path / "adapter")
    with pytest.raises(ParleyError, match=r"has no file other.gguf"):
        load_model(tmp_path, gguf_file="other.gguf")


def write_llama_gguf(gguf, model, tokenizer: PreTrainedTokenizerFast, path, kind: str) -> None:
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(backend["vocab"], key=backend["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in backend["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers": "blk",
    }
    for name, value in model.named_parameters():
        tensor = value.detach()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp interleaves the two halves of each rotary head
            heads = config.num_attention_heads
            tensor = tensor.view(heads, 2, tensor.shape[0] // heads // 2, -1).transpose(1, 2).reshape(tensor.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        quantization = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
        data = gguf.quants.quantize(tensor.contiguous().numpy(), quantization)
        writer.add_tensor(name, data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_stock_gpt2_reads_what_we_loaded(base, logits):
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(base("gpt2"))), logits(load_model(base("gpt2"))), rtol=0, atol=0
    )
