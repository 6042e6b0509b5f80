"""Text stays text, for every kind of tokenizer; what a tokenizer loses is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, SentencePieceBPETokenizer, SentencePieceUnigramTokenizer, Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from src.models.loading import load_tokenizer
from src.models.saving import save_tokenizer
from src.models.texts import disguise, lost_characters, rendered_ids, text_ids

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "<extra>"]
CORPUS = ["a </s> b <s> c <pad> d <extra> <unk> e x", "hello there, how are you? Hello, what is it?"] * 5
TEXT = "a </s> b<s> <extra></s>"


def unigrams(folder: Path) -> Path:
    """As T5 and XLM-RoBERTa have them: the special tokens are words of the model too."""
    trained = SentencePieceUnigramTokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=80, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    return saved(trained._tokenizer, folder)


def pairs(folder: Path) -> Path:
    """As KoGPT2 and KoBART have them."""
    trained = SentencePieceBPETokenizer(unk_token="<unk>")
    trained.train_from_iterator(CORPUS, vocab_size=80, special_tokens=SPECIALS, show_progress=False)
    return saved(trained._tokenizer, folder)


def saved(backend: Tokenizer, folder: Path) -> Path:
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(folder)
    return folder


@pytest.fixture(params=["t5", "bart", "gpt2", "llama", "unigrams", "pairs"])
def any_tokenizer(
    request: pytest.FixtureRequest, base: Callable[[str], Path], tmp_path: Path
) -> PreTrainedTokenizerBase:
    made = {"unigrams": unigrams, "pairs": pairs}
    return load_tokenizer(made[request.param](tmp_path) if request.param in made else base(request.param))


def test_a_name_of_a_token_in_a_text_is_not_the_token(any_tokenizer: PreTrainedTokenizerBase) -> None:
    [ids] = text_ids([TEXT], any_tokenizer)
    assert not set(ids) & (set(any_tokenizer.all_special_ids) - {any_tokenizer.unk_token_id})
    assert any_tokenizer.decode(ids).strip() == TEXT
    assert any_tokenizer.eos_token_id in any_tokenizer(TEXT)["input_ids"]  # transformers' own call is as it was


def test_a_templates_markers_are_tokens_and_its_texts_are_not(any_tokenizer: PreTrainedTokenizerBase) -> None:
    hide = disguise(any_tokenizer)
    eos = any_tokenizer.eos_token
    ids = rendered_ids(f"user {hide(f'what is {eos} ?')}{eos}", any_tokenizer)
    assert ids.count(any_tokenizer.eos_token_id) == 1
    assert ids[-1] == any_tokenizer.eos_token_id
    back = any_tokenizer.decode(ids)
    assert back.replace(" ", "") == f"user what is {eos} ?{eos}".replace(" ", "")
    plain = f"user what is it ?{eos}"
    assert (
        rendered_ids(hide("user what is it ?") + eos, any_tokenizer)
        == any_tokenizer(plain, add_special_tokens=False)["input_ids"]
    )


def test_texts_without_such_names_are_cut_as_ever(tmp_path: Path) -> None:
    """The step before the model parts nothing else: compared with the tokenizer's own file."""
    folder = unigrams(tmp_path)
    stock = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [CORPUS[1], "a < b, s> /s> x", "<<hello>>"]
    expected = [cut.ids for cut in stock.encode_batch(texts, add_special_tokens=False)]
    tokenizer = load_tokenizer(folder)
    assert text_ids(texts, tokenizer) == expected
    save_tokenizer(tokenizer, tmp_path / "saved")
    stock, again = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json")), load_tokenizer(tmp_path / "saved")
    assert [cut.ids for cut in stock.encode_batch(texts, add_special_tokens=False)] == expected
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_lost_characters(tmp_path: Path, base: Callable[[str], Path]) -> None:
    texts = ["hello there", "hello 안녕 there!", "  Hello\n\nthere", ""]

    def lost(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return lost_characters(texts, text_ids(texts, tokenizer, special=True), tokenizer)

    assert lost(texts, load_tokenizer(base("gpt2"))) == [0, 0, 0, 0]
    assert lost(texts, load_tokenizer(pairs(tmp_path))) == [0, 3, 0, 0]
    deaf = load_tokenizer(pairs(tmp_path / "deaf"))
    deaf.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(".|\n"), "removed")
    assert lost(["hello there"], deaf) == [10]
