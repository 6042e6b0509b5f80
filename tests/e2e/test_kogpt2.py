"""KoGPT2 as its releases lie: SentencePiece's words in JSON, weights in `pytorch_model.bin`, no tokenizer settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import SentencePieceBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from src.models.loading import load_model, load_tokenizer

SPECIALS = ["<s>", "</s>", "<usr>", "<pad>", "<sys>", "<unk>", "<mask>"]
ANIMALS = ["고양이", "강아지", "토끼", "다람쥐", "거북이", "코끼리", "펭귄", "기린"]
PLACES = ["집", "학교", "바다", "산", "공원", "시장"]
PAIRS = [(f"{animal}는 {place}에 있나요?", f"네, {place}에서 잘 놀아요.") for animal in ANIMALS for place in PLACES]
LAYOUTS = {"first": ["merges.txt", "vocab.json"], "hub": ["tokenizer.json"]}

RUN = """
seed_everything: 1
model:
  class_path: CausalLMModule
  init_args:
    model_name_or_path: kogpt2
    lora: {lora}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.02}}}}
    generation: {{max_new_tokens: 8}}
    metrics:
      rouge:
        class_path: src.metrics.rouge.Rouge
        init_args:
          tokenizer: unicode
data:
  class_path: ChatbotDataModule
  init_args: {{path: pairs.csv, format: published, loss_on: all, batch_size: 8, cache_dir: cache}}
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 6
  log_every_n_steps: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
"""


@pytest.fixture
def kogpt2() -> Callable[[Path, str], SentencePieceBPETokenizer]:
    """Writes a tiny KoGPT2 in one of its releases' layouts; returns the tokenizer that it was made with."""

    def make(directory: Path, layout: str) -> SentencePieceBPETokenizer:
        directory.mkdir(parents=True)
        tokenizer = SentencePieceBPETokenizer(unk_token="<unk>")
        texts = [text for pair in PAIRS for text in pair]
        tokenizer.train_from_iterator(texts, vocab_size=300, special_tokens=SPECIALS, show_progress=False)
        if layout == "first":
            tokenizer.save_model(str(directory))
        else:
            tokenizer.save(str(directory / "tokenizer.json"))
        roles = {"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "<pad>"}
        config = GPT2Config(
            vocab_size=tokenizer.get_vocab_size(),
            n_embd=32,
            n_layer=1,
            n_head=2,
            n_positions=128,
            **{role: tokenizer.token_to_id(token) for role, token in roles.items()},
        )
        config.save_pretrained(directory)
        torch.manual_seed(0)
        torch.save(AutoModelForCausalLM.from_config(config).state_dict(), directory / "pytorch_model.bin")
        assert sorted(path.name for path in directory.iterdir()) == sorted(
            ["config.json", "pytorch_model.bin", *LAYOUTS[layout]]
        )
        return tokenizer

    return make


@pytest.mark.parametrize("layout", LAYOUTS)
def test_korean_is_cut_as_the_model_learned_it(layout, kogpt2, tmp_path):
    made, tokenizer = kogpt2(tmp_path / "kogpt2", layout), load_tokenizer(tmp_path / "kogpt2")
    for text in ("고양이는 바다에서 놀아요.", "<s>토끼는 집에 있나요?</s><s>네</s>"):
        assert tokenizer(text, add_special_tokens=False).input_ids == made.encode(text).ids
    assert tokenizer.decode(tokenizer("고양이는 바다에서 놀아요.").input_ids) == "고양이는 바다에서 놀아요."
    roles = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert roles == ("<s>", "</s>", "<pad>", "<unk>")
    assert len(tokenizer) == made.get_vocab_size()  # nothing added: the embeddings stay as they came
    assert tokenizer.model_max_length == 128


@pytest.mark.parametrize("layout", LAYOUTS)
def test_by_its_hub_name_from_the_cache(layout, kogpt2, tmp_path, monkeypatch):
    from huggingface_hub import constants

    revision, name = "0" * 40, "skt/kogpt2-tiny"
    repository = tmp_path / "models--skt--kogpt2-tiny"
    made = kogpt2(repository / "snapshots" / revision, layout)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    tokenizer = load_tokenizer(name)
    assert tokenizer("토끼는 산에서").input_ids == made.encode("토끼는 산에서").ids
    assert load_model(name).config.vocab_size == made.get_vocab_size()


def latest(root: Path) -> Path:
    return max((root / "runs").glob("*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "lora"), [("first", "null"), ("hub", "{r: 4, target_modules: all-linear}")])
def test_the_whole_road(layout, lora, kogpt2, parley, metrics, tmp_path, capsys):
    """Trains, resumes from the end, exports, answers, and is read by the stock library."""
    made = kogpt2(tmp_path / "kogpt2", layout)
    rows = ["Q,A,label", *(f'"{question}","{answer}",0' for question, answer in PAIRS)]
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "run.yaml").write_text(RUN.format(lora=lora), encoding="utf-8")

    assert parley("fit", "-c", "run.yaml") == 0
    perplexities = metrics("val/perplexity")
    assert perplexities[-1] < perplexities[0], perplexities
    assert parley("fit", "-c", "run.yaml", "--ckpt_path", latest(tmp_path), "--trainer.max_epochs", "7") == 0
    assert len(metrics("train/loss")) == 7 * 6  # the seventh epoch alone was added
    assert parley("export", "--checkpoint", latest(tmp_path), "--output", "out") == 0

    capsys.readouterr()
    question = PAIRS[0][0]
    assert parley("generate", "out", "--format", "published", "--prompt", question, "--max-new-tokens", "8") == 0
    answer = capsys.readouterr().out
    assert any("가" <= letter <= "힣" for letter in answer)
    assert "<unk>" not in answer

    stock = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert stock(question, add_special_tokens=False).input_ids == made.encode(question).ids
