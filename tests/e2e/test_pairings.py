"""Every Module with every DataModule, whole and as an adapter, from YAML alone: the whole road of each of the eight."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from src.cli import main

MODULE = {"seq2seq": "Seq2SeqModule", "causal": "CausalLMModule"}
ARCHITECTURES = {
    ("seq2seq", "whole"): "t5",
    ("seq2seq", "lora"): "bart",
    ("causal", "whole"): "gpt2",
    ("causal", "lora"): "llama",
}
LORA = "{r: 4, lora_alpha: 8, target_modules: all-linear}"
STEPS = 4

YAML = """
seed_everything: 1
model:
  class_path: {module}
  init_args:
    model_name_or_path: {base}
    lora: {lora}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.01}}}}
    generation: {{max_new_tokens: 6}}
    metrics:
      rouge:
        class_path: src.metrics.rouge.Rouge
        init_args:
          tokenizer: unicode
data:
  class_path: {data}
  init_args:
    path: {path}
    packing: {packing}
    loss_on: {loss_on}
    batch_size: 4
    max_source_length: 96
    max_target_length: 32
    cache_dir: cache
trainer:
  accelerator: cpu
  devices: 1
  max_steps: {steps}
  limit_val_batches: 1
  val_check_interval: 2
  check_val_every_n_epoch: null
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{filename: "at-{{step}}", every_n_train_steps: 2, save_top_k: -1}}
"""


def korean(path: Path) -> Path:
    """Pairs of our own in ChatbotData's format."""
    words = ["밥", "잠", "비", "눈", "책", "꽃", "길", "집", "물", "해"]
    rows = [(f"{a} {b} 어때?", f"{b}, 좋지요.", number % 3) for number, a in enumerate(words) for b in words]
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("Q", "A", "label"), *rows])
    return path


def checkpoint(step: int) -> Path:
    """The latest of a step."""
    return max(Path("runs").glob(f"*/checkpoints/at-step={step}*.ckpt"), key=lambda file: file.stat().st_mtime_ns)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["DialogSumDataModule", "ChatbotDataModule"])
@pytest.mark.parametrize("training", ["whole", "lora"])
@pytest.mark.parametrize("kind", ["seq2seq", "causal"])
def test_the_whole_road(
    kind: str,
    training: str,
    data: str,
    tiny_base: Callable[..., Path],
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metrics: Callable[..., list[float]],
):
    monkeypatch.chdir(tmp_path)
    base = tiny_base(ARCHITECTURES[kind, training])
    chatbot, packing = data == "ChatbotDataModule", kind == "causal" and data == "ChatbotDataModule"
    settings = {
        "module": MODULE[kind],
        "base": base,
        "lora": LORA if training == "lora" else "null",
        "data": data,
        "path": korean(tmp_path / "ChatbotData.csv") if chatbot else sample,
        "packing": str(packing).lower(),
        "loss_on": "all" if packing else "response",
        "steps": STEPS,
    }
    Path("run.yaml").write_text(YAML.format(**settings), encoding="utf-8")

    # trains, validates, checkpoints
    assert main(["fit", "-c", "run.yaml"]) == 0
    losses = metrics("train/loss")
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    perplexities = metrics("val/perplexity")
    assert len(perplexities) == STEPS // 2
    assert perplexities == pytest.approx(torch.tensor(metrics("val/loss")).exp().tolist(), rel=1e-4)
    assert metrics("val/rouge1")

    # resumes, as if nothing had happened
    end = checkpoint(STEPS)
    straight = weights(end)
    end.unlink()
    assert main(["fit", "-c", "run.yaml", "--ckpt_path", str(checkpoint(2))]) == 0
    resumed = weights(checkpoint(STEPS))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)

    # exports, loads with the stock libraries, generates
    assert main(["export", "--checkpoint", str(checkpoint(STEPS)), "--output", "out"]) == 0
    auto = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
    start = auto.from_pretrained(base)
    model = (
        PeftModel.from_pretrained(auto.from_pretrained(base), "out")
        if training == "lora"
        else auto.from_pretrained("out")
    )
    tokenizer = AutoTokenizer.from_pretrained("out")
    question = "<s>밥 어때?</s><s>" if packing else "밥 어때?"
    inputs = tokenizer([question], return_tensors="pt", add_special_tokens=kind == "seq2seq")
    answer = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert answer.shape[1] > 1
    decoder = {"decoder_input_ids": inputs["input_ids"]} if kind == "seq2seq" else {}
    with torch.no_grad():
        trained, untrained = model.eval()(**inputs, **decoder).logits, start.eval()(**inputs, **decoder).logits
    assert not torch.allclose(trained, untrained, atol=1e-3)


@pytest.mark.parametrize(("module", "architecture"), [("Seq2SeqModule", "gpt2"), ("CausalLMModule", "t5")])
def test_a_module_for_the_other_architecture_is_refused(module, architecture, tiny_base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = {"module": module, "base": tiny_base(architecture), "lora": "null", "data": "ChatbotDataModule"}
    settings |= {"path": korean(tmp_path / "pairs.csv"), "packing": "false", "loss_on": "response", "steps": 1}
    Path("run.yaml").write_text(YAML.format(**settings), encoding="utf-8")
    assert main(["fit", "-c", "run.yaml"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("parley fit:")]
    assert len(lines) == 1
    assert "use " in lines[0]
