"""The road of a user: fit, test, export, load with stock libraries."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from src.inference.export import restore

ROOT = Path(__file__).resolve().parents[2]
SEQ2SEQ = ROOT / "configs" / "dialogsum_seq2seq.yaml"
LORA = ROOT / "configs" / "dialogsum_lora.yaml"
QUICK = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.max_epochs",
    "1",
    "--trainer.limit_train_batches",
    "4",
    "--trainer.limit_val_batches",
    "1",
    "--trainer.limit_test_batches",
    "2",
    "--trainer.num_sanity_val_steps",
    "0",
    "--trainer.log_every_n_steps",
    "1",
    "--trainer.enable_progress_bar",
    "false",
    "--data.init_args.max_source_length",
    "96",
    "--model.init_args.generation.max_new_tokens",
    "8",
    "--model.init_args.optimizer.init_args.lr",
    "0.01",
]


def checkpoint_of(directory: Path, version: int = 0) -> Path:
    return next((directory / "runs" / f"version_{version}" / "checkpoints").glob("*.ckpt"))


def options(base: Path, sample: Path) -> list[str]:
    return ["--model.init_args.model_name_or_path", str(base), "--data.init_args.path", str(sample), *QUICK]


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(10, 34).view(2, 12)
    with torch.no_grad():
        return model.eval()(input_ids=ids, decoder_input_ids=ids[:, :5]).logits


@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
def test_whole_model(parley, tmp_path, metrics, tiny_base: Callable[..., Path], sample: Path, untied: bool):
    base = tiny_base("t5", untied=untied)
    assert parley("fit", "-c", SEQ2SEQ, *options(base, sample)) == 0
    losses = metrics("train/loss")
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert 0 <= metrics("val/rouge1")[0] <= metrics("val/rouge1_best")[0]
    checkpoint = checkpoint_of(tmp_path)
    assert parley("export", "--checkpoint", checkpoint, "--output", tmp_path / "out") == 0
    stock = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(stock), logits(restore(checkpoint).model), rtol=0, atol=1e-6)
    assert not torch.allclose(logits(stock), logits(AutoModelForSeq2SeqLM.from_pretrained(base)), atol=1e-3)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("Hi there").input_ids
    saved_config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved_config["tie_word_embeddings"] is not untied


@pytest.mark.slow
@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
def test_adapter(parley, tmp_path, tiny_base: Callable[..., Path], sample: Path, untied: bool):
    base = tiny_base("t5", untied=untied)
    assert parley("fit", "-c", LORA, *options(base, sample)) == 0
    checkpoint = checkpoint_of(tmp_path)
    names = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert names
    assert all("lora_" in name for name in names)
    assert parley("export", "--checkpoint", checkpoint, "--output", tmp_path / "adapter") == 0
    assert parley("export", "--checkpoint", checkpoint, "--output", tmp_path / "merged", "--merge") == 0
    trained = logits(restore(checkpoint).model)
    adapted = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), tmp_path / "adapter")
    torch.testing.assert_close(logits(adapted), trained, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")), trained, rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(trained, logits(AutoModelForSeq2SeqLM.from_pretrained(base)), atol=1e-4)


def test_test_split_is_predicted_once_and_scored(parley, tmp_path, capsys, tiny_base, sample, metrics):
    base = tiny_base("t5")
    words = options(base, sample)
    assert parley("test", "-c", SEQ2SEQ, *words) == 0
    predictions = tmp_path / "runs" / "version_0" / "predictions.csv"
    capsys.readouterr()
    references = [word for i in (1, 2, 3) for word in ("--reference-column", f"reference{i}")]
    score = ["score", predictions, *references, "--prediction-column", "prediction", "--allow-empty", "--json"]
    assert parley(*score) == 0
    printed = json.loads(capsys.readouterr().out)
    assert "prediction" in json.dumps(printed)
    with predictions.open() as stream:
        assert sum(1 for _ in csv.DictReader(stream)) == 16  # two batches of eight


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--model.init_args.model_name_or_path", "no/such/dir/at/all"], "no/such/dir"),
        (["--data.init_args.path", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data.init_args.template", "sumarize"], "unknown template"),
        (["--data.init_args.train_split", "train[:0]"], "empty"),
        (["--data.init_args.batchsize", "4"], "batchsize"),
        (["--model.init_args.lora", "{r: 4, target_modules: [nonsense]}"], "nonsense"),
        (["--ckpt_path", "gone.ckpt"], "gone.ckpt"),
        (["--data.init_args.every_nth", "0"], "every_nth"),
    ],
)
def test_bad_input_is_one_line(parley, capsys, tiny_base, sample, words, complaint):
    assert parley("fit", "-c", SEQ2SEQ, *options(tiny_base("t5"), sample), *words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("parley fit: ")
    assert complaint in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_adapter_for_another_base_is_refused_with_both_names(parley, tmp_path, capsys, tiny_base, sample):
    first, second = tiny_base("t5"), tiny_base("t5", seed=1)
    assert parley("fit", "-c", LORA, *options(first, sample)) == 0
    checkpoint = checkpoint_of(tmp_path)
    assert parley("fit", "-c", LORA, *options(second, sample), "--ckpt_path", checkpoint) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(first) in error
    assert str(second) in error
    assert parley("export", "--checkpoint", checkpoint, "--output", "out", "--base-model", second) == 2
    assert not Path("out").exists()
