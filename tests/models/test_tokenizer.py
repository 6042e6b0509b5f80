import json

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, SentencePieceBPETokenizer, SentencePieceUnigramTokenizer
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from src.errors import ParleyError
from src.models.loading import load_model, load_tokenizer
from src.models.tokenizer import ensure_padding, fit_embeddings
from src.models.tying import head_is_tied

KOREAN = ["근육이 커지기 위해서는", "오늘 저녁에 뭐 먹을까요", "안녕하세요 반갑습니다"] * 5


@pytest.fixture
def bare():
    """A tokenizer without special roles over given extra tokens."""

    def make(*extra: str, **roles: str) -> PreTrainedTokenizerFast:
        backend = ByteLevelBPETokenizer()
        backend.train_from_iterator(["some text"], vocab_size=270, special_tokens=list(extra), show_progress=False)
        return PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, **roles)

    return make


def test_padding_is_chosen_in_the_documented_order(bare):
    for extra, roles, expected in [
        (("<pad>", "<unk>", "</s>"), {"unk_token": "<unk>", "eos_token": "</s>"}, "<pad>"),
        (("<unk>", "</s>"), {"unk_token": "<unk>", "eos_token": "</s>"}, "<unk>"),
        (("<|end|>",), {"unk_token": "<|end|>", "eos_token": "<|end|>"}, "<|end|>"),
        (("</s>",), {"eos_token": "</s>"}, "</s>"),
        ((), {}, "<pad>"),
    ]:
        tokenizer = bare(*extra, **roles)
        ensure_padding(tokenizer)
        assert tokenizer.pad_token == expected
        assert tokenizer(["a", "a b c"], padding=True).attention_mask[0][-1] == 0


def test_a_padding_token_that_is_there_is_kept(bare):
    tokenizer = bare("<pad>", "[PAD]", pad_token="[PAD]")
    ensure_padding(tokenizer)
    assert tokenizer.pad_token == "[PAD]"


def test_new_tokens_get_rows_and_old_rows_stay_bit_for_bit(model, tokenizer, untied, logits):
    before = logits(model)
    embeddings = model.get_input_embeddings().weight.detach().clone()
    head = model.get_output_embeddings().weight.detach().clone()
    assert fit_embeddings(model, tokenizer) == 0
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<name>"]})
    assert fit_embeddings(model, tokenizer) == 2
    assert torch.equal(model.get_input_embeddings().weight[:rows], embeddings)
    assert torch.equal(model.get_output_embeddings().weight[:rows], head)
    assert model.get_output_embeddings().weight.shape[0] == rows + 2
    assert head_is_tied(model) is not untied
    assert model.config.vocab_size == rows + 2
    torch.testing.assert_close(logits(model)[..., :rows], before)
    ids = torch.tensor([tokenizer.encode("hello <turn>")])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad[rows].abs().sum() > 0


def test_two_processes_would_get_the_same_new_rows(base):
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model, tokenizer = load_model(base("t5-untied")), load_tokenizer(base("t5-untied"))
        tokenizer.add_tokens(["<turn>"])
        fit_embeddings(model, tokenizer)
        models.append(model)
    for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(left, right)


def test_spare_rows_stay(base):
    model, tokenizer = load_model(base("gpt2")), load_tokenizer(base("gpt2"))
    model.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
    assert fit_embeddings(model, tokenizer) == 0
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) + 8


def test_kogpt2_original_layout(tmp_path):
    """vocab.json, merges.txt, pytorch_model.bin and config.json are all there was."""
    specials = ["<s>", "</s>", "<pad>", "<unk>"]
    trained = SentencePieceBPETokenizer(unk_token="<unk>")
    trained.train_from_iterator(KOREAN, vocab_size=200, special_tokens=specials, show_progress=False)
    trained.save_model(str(tmp_path))
    config = GPT2Config(vocab_size=200, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    config.save_pretrained(tmp_path)
    torch.save(AutoModelForCausalLM.from_config(config).state_dict(), tmp_path / "pytorch_model.bin")
    assert not (tmp_path / "tokenizer.json").exists()

    tokenizer = load_tokenizer(tmp_path)
    text = "오늘 저녁에 반갑습니다"
    assert tokenizer(text).input_ids == trained.encode(text).ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    roles = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert list(roles) == specials
    ids = tokenizer("<s>안녕하세요</s><s>반갑습니다</s>").input_ids
    assert ids[0] == 0
    assert ids[-1] == 1
    assert ids.count(0) == ids.count(1) == 2
    assert tokenizer.model_max_length == 64
    assert load_model(tmp_path).config.vocab_size == 200


def test_bare_byte_level_layout(tmp_path):
    """GPT-2's own original files."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(KOREAN, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    trained.save_model(str(tmp_path))
    GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer(KOREAN[0]).input_ids == trained.encode(KOREAN[0]).ids
    assert tokenizer.decode(tokenizer(KOREAN[0]).input_ids) == KOREAN[0]
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize("named", ["BartTokenizer", "BartTokenizerFast", "T5Tokenizer", "XLMRobertaTokenizer", None])
@pytest.mark.parametrize("kind", ["pairs", "unigrams", "bytes"])
def test_a_tokenizer_file_is_read_as_it_is_whatever_class_is_named(named, kind, tmp_path):
    """KoBART's releases: `tokenizer.json` and a class, or none, for which transformers 5 would rebuild it."""
    specials = ["<s>", "</s>", "<pad>", "<unk>"]
    makers = {
        "pairs": SentencePieceBPETokenizer,
        "unigrams": SentencePieceUnigramTokenizer,
        "bytes": ByteLevelBPETokenizer,
    }
    trained = makers[kind]()
    unknown = {"unk_token": "<unk>"} if kind == "unigrams" else {}
    trained.train_from_iterator(KOREAN, vocab_size=300, special_tokens=specials, show_progress=False, **unknown)
    trained.save(str(tmp_path / "tokenizer.json"))
    settings = {"model_max_length": 77, **({"tokenizer_class": named} if named else {})}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart"}))
    tokenizer = load_tokenizer(tmp_path)
    for text in [*KOREAN[:3], "☃"]:
        assert tokenizer(text, add_special_tokens=False).input_ids == trained.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer(KOREAN[0]).input_ids, skip_special_tokens=True).strip() == KOREAN[0]
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == ("</s>", "<pad>", "<unk>")
    assert tokenizer.model_max_length == 77


@pytest.mark.parametrize(
    ("end", "settings"), [("</s>", {}), ("<|endoftext|>", {"eos_token_id": 50256}), ("<fin>", {"eos_token_id": 2})]
)
def test_the_end_is_found_where_the_tokenizer_names_none(end, settings, bare, tmp_path):
    """What `PreTrainedTokenizerFast(tokenizer_object=...)` saves, if nobody tells it the roles."""
    bare("<unk>", "<other>", end).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **settings}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_token == end
    assert tokenizer.eos_token_id == 2
    assert tokenizer.pad_token == "<unk>"


def test_a_tokenizer_without_an_end_is_named(bare, tmp_path, caplog):
    bare("<other>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    load_tokenizer(tmp_path)
    assert "known to end an answer" in caplog.text


@pytest.mark.parametrize("broken", ["no pair\nin here\n", "근 zzz\n"])
@pytest.mark.parametrize("settings", [{}, {"tokenizer_class": "GPT2Tokenizer"}])
def test_broken_merges_are_one_line(broken, settings, tmp_path):
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(KOREAN, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    trained.save_model(str(tmp_path))
    GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2).save_pretrained(tmp_path)
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "merges.txt").write_text(broken)
    with pytest.raises(ParleyError, match=r"the tokenizer of .* cannot be read") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ParleyError, match=r"has no tokenizer: its files \(tokenizer\.json, \.\.\.\) are missing\.$"):
        load_tokenizer(tmp_path)
