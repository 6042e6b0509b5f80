import hashlib
from pathlib import Path

import pytest
import torch

from src.errors import ParleyError
from src.models.corpus import read_corpus
from src.models.loading import load_model, load_tokenizer
from src.models.scratch import Sizes, make_base_model

CORPUS = ["Anna: at 7:30? Ben: yes, with 2 tickets.", "오늘 저녁에 뭐 먹을까요?"] * 4
SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "vocab_size": 300}
STRANGE = "  tabs\tand\nlines 12,345.67  é 漢字 🙂 \u200b ﬁ Å 값\r\n"


def test_any_text_comes_back_byte_for_byte(tokenizer):
    ids = tokenizer(STRANGE, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == STRANGE
    assert tokenizer.unk_token_id not in ids


def test_each_digit_is_a_token(tokenizer):
    tokens = tokenizer.tokenize("2024")
    assert tokens[-4:] == ["2", "0", "2", "4"]


def test_special_tokens_and_templates_are_those_of_the_architecture(kind, tokenizer, model):
    one = tokenizer("hi").input_ids
    if kind.startswith("t5"):
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
        assert model.config.decoder_start_token_id == 0
        assert one[-1] == 1
        assert one.count(1) == 1
    elif kind == "bart":
        assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        assert model.config.decoder_start_token_id == 2
        assert (one[0], one[-1]) == (0, 2)
    else:
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
        assert not set(one) & set(tokenizer.all_special_ids)
        assert tokenizer("<s>Q</s>").input_ids[0] == tokenizer.bos_token_id == model.config.bos_token_id
        assert tokenizer("<s>Q</s>").input_ids[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == len(tokenizer)


def test_the_same_seed_gives_the_same_files_and_another_does_not(tmp_path):
    def digest(name: str, seed: int) -> dict[str, str]:
        make_base_model("t5", CORPUS, tmp_path / name, Sizes(**SMALL), seed=seed)
        files = sorted((tmp_path / name).iterdir())
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    torch.manual_seed(123)
    first, state = digest("a", 0), torch.get_rng_state()
    assert digest("b", 0) == first
    other = digest("c", 1)
    assert other["tokenizer.json"] == first["tokenizer.json"]
    assert other["model.safetensors"] != first["model.safetensors"]
    assert torch.equal(torch.get_rng_state(), state)


def test_first_loss_is_near_that_of_guessing(kind, model, tokenizer):
    """Weights drawn too wide would start far above log(vocabulary)."""
    batch = tokenizer(CORPUS[:2], return_tensors="pt", padding=True)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    assert model(**inputs, labels=labels).loss.item() < torch.tensor(float(len(tokenizer))).log() + 1.5


def test_it_learns_a_sentence_by_heart(kind, model, tokenizer):
    torch.manual_seed(0)
    batch = tokenizer(CORPUS[:1], return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(input_ids=batch.input_ids, labels=batch.input_ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


@pytest.mark.parametrize(
    ("architecture", "sizes", "said"),
    [
        ("rnn", {}, "there is no architecture rnn"),
        ("t5", {"hidden_size": 30, "heads": 4}, "hidden size 30 is not divisible by 4 heads; 28 would be"),
        ("t5", {"vocab_size": 100}, "--vocab-size is 100; it must be 259 or more"),
        ("gpt2", {"layers": 0}, "layers must be at least 1"),
        ("t5", {"max_positions": 64}, "leave --max-positions out"),
        ("bart", {"untied_head": True}, "--untied-head is for t5"),
        ("llama", {"hidden_size": 12, "heads": 4}, "even width per head"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(architecture, sizes, said, tmp_path):
    with pytest.raises(ParleyError, match=said):
        make_base_model(architecture, CORPUS, tmp_path / "x", Sizes(**{**SMALL, **sizes}))
    assert not list(tmp_path.iterdir())


def test_positions_are_the_tokenizer_limit(tmp_path):
    make_base_model("gpt2", CORPUS, tmp_path / "x", Sizes(**SMALL, max_positions=64))
    assert load_tokenizer(tmp_path / "x").model_max_length == 64
    assert load_model(tmp_path / "x").config.n_positions == 64


def test_corpus_is_every_text_of_every_kind_of_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"x": "three", "n": 4, "deep": {"y": ["five"]}}\n\n', encoding="utf-8")
    (tmp_path / "c.csv").write_text('Q,A,label\n"여섯, 일곱",eight,0\n', encoding="utf-8-sig")
    (tmp_path / "ignored.md").write_text("no")
    assert list(read_corpus([tmp_path])) == ["one", "two", "three", "five", "여섯, 일곱", "eight"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bad.txt", b"\xff\xfe", "bad.txt, line 1 is not UTF-8"),
        ("bad.jsonl", b'{"a": "b"}\n{"a": \n', "bad.jsonl, line 2 is not JSON"),
        ("empty.txt", b"\n \n", "the corpus has no text"),
        ("none.md", None, "there is no corpus file"),
    ],
)
def test_corpus_that_cannot_be_used_is_refused(name, content, said, tmp_path):
    path: Path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ParleyError, match=said) as error:
        make_base_model("t5", read_corpus([path]), tmp_path / "x", Sizes(**SMALL))
    assert "\n" not in str(error.value)


def test_directory_without_texts_is_refused(tmp_path):
    with pytest.raises(ParleyError, match=r"has no \.txt, \.jsonl, \.csv, \.tsv, \.parquet file"):
        list(read_corpus([tmp_path]))
