"""The model card that `parley export` writes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from src.cli import main
from src.files import read_rows
from src.inference.card_figures import rouge_with_intervals
from src.reporting.card import CardFacts, Figure, model_card, shown_place


def read(directory: Path) -> tuple[str, dict]:
    text = (directory / "README.md").read_text(encoding="utf-8")
    return text, ModelCard(text).data.to_dict()  # the hub's own reader


@pytest.fixture
def tested(checkpoint: Path, tiny_base: Callable[..., Path], tmp_path: Path) -> Path:
    """A test of the checkpoint, in a run beside its own."""
    (tmp_path / "asked").mkdir()
    for split in ("train", "test"):
        rows = "".join(json.dumps({"Q": f"{split} {n}", "A": f"a {n}"}) + "\n" for n in range(6))
        (tmp_path / "asked" / f"{split}.jsonl").write_text(rows)
    words = [
        "test",
        "-c",
        "configs/chatbot_lora.yaml",
        "-c",
        "configs/trainer/cpu.yaml",
        "--ckpt_path",
        str(checkpoint),
    ]
    settings = {
        "model.init_args.model_name_or_path": str(tiny_base("gpt2")),
        "model.init_args.lora.r": "3",
        "model.init_args.generation.max_new_tokens": "4",
        "data.init_args.path": str(tmp_path / "asked"),
        "data.init_args.cache_dir": str(tmp_path / "cache"),
        "trainer.default_root_dir": str(tmp_path / "run"),
    }
    assert main([*words, *(f"--{key}={value}" for key, value in settings.items())]) == 0
    return max((tmp_path / "run").rglob("predictions.csv")).parent


@pytest.mark.slow
def test_an_adapters_card_says_what_it_is(
    checkpoint: Path, tested: Path, tiny_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "chatbot-lora"
    words = ["export", "--checkpoint", str(checkpoint), "--output", str(output), "--license", "apache-2.0"]
    assert main(words) == 0
    text, data = read(output)
    assert (data["license"], data["library_name"]) == ("apache-2.0", "peft")
    assert {"parley", "CausalLMModule", "lora"} <= set(data["tags"])
    assert "| `model.init_args.lora.init_args.r` | `3` |" in text
    assert "| optimiser steps | 2 |" in text
    assert "`gpt2-0`" in text
    assert "parley fit -c version_0/config.yaml" in text
    assert str(tmp_path) not in text  # nor any other directory of the writer's
    assert str(tiny_base("gpt2").parent) not in text
    logged = {
        name: float(row.cells[name])
        for row in read_rows(tested / "metrics.csv")
        for name in row.cells
        if row.cells[name]
    }
    for key in ("rouge1", "rougeL"):
        value, low, high = re.search(rf"`test/{key}` \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|", text).groups()
        assert float(value) == pytest.approx(logged[f"test/{key}"], abs=1e-4)
        assert float(low) <= float(value) <= float(high)
    assert f"{sum(1 for _ in read_rows(tested / 'predictions.csv'))} examples" in text
    metrics = data["model-index"][0]["results"][0]["metrics"]
    assert data["model-index"][0]["results"][0]["dataset"] == {"name": "asked", "type": "asked", "split": "test"}
    assert "Of the split `test` of `asked`, 6 examples" in text
    assert {metric["name"] for metric in metrics} >= {"test/rouge1", "test/loss"}
    [code] = re.findall(r"```python\n(from transformers.*?)```", text, re.DOTALL)
    (tmp_path / "gpt2-0").symlink_to(tiny_base("gpt2"))
    monkeypatch.chdir(tmp_path)
    made: dict = {}
    exec(code, made)
    assert type(made["model"]).__name__ == "PeftModelForCausalLM"


@pytest.mark.slow
def test_without_a_test_the_card_says_so(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "whole"
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(whole), "--merge"]) == 0
    text, data = read(whole)
    assert (data["license"], data["library_name"]) == ("unknown", "transformers")
    assert "fill it in" in text
    assert "It was not tested" in text
    alone = tmp_path / "alone.ckpt"
    os.link(checkpoint, alone)  # whose run nobody knows
    assert main(["export", "--checkpoint", str(alone), "--output", str(tmp_path / "alone")]) == 0
    text, data = read(tmp_path / "alone")
    assert "Nothing was measured" in text
    assert "The run is not known" in text
    assert data["tags"] == ["parley", "lora"]
    run = str(checkpoint.parent.parent)
    for more, said in (
        (["--figures", run], "has no metrics.csv"),
        (["--figures", str(tmp_path / "none")], "there is no run"),
        (["--license", "My Own!"], "give an identifier"),
    ):
        capsys.readouterr()
        assert main(["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "x"), *more]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


def test_intervals_are_a_bootstraps(tmp_path: Path) -> None:
    """Half right and half wrong: the mean of 100 such has a standard error of 0.05."""
    file = tmp_path / "predictions.csv"
    rows = [f"{n},p,the cat sat,{'the cat sat' if n % 2 else 'no such words'}" for n in range(100)]
    file.write_text("\n".join(["id,prompt,reference1,prediction", *rows]), encoding="utf-8")
    count, scores = rouge_with_intervals(file)
    mean, low, high = scores["rouge1"]
    assert (count, mean) == (100, 0.5)
    assert (low, high) == (pytest.approx(0.402, abs=0.02), pytest.approx(0.598, abs=0.02))


def test_nothing_in_a_setting_breaks_the_card() -> None:
    odd = "a | b\n# not a heading `x` {x}"
    facts = CardFacts(
        "m", "google/flan-t5-base", None, True, 10, "1", "runs/v", 3,
        {"model.class_path": "a.b.C", "data.init_args.path": "knkarthick/dialogsum", "data.init_args.template": odd},
        odd, [Figure("test/rouge1", 0.5, (0.4, 0.6))], 7, True,
    )  # fmt: skip
    text = model_card(facts)
    data = ModelCard(text).data.to_dict()
    assert (data["base_model"], data["datasets"]) == ("google/flan-t5-base", ["knkarthick/dialogsum"])
    assert "\n# not a heading" not in text
    assert repr(odd) in text
    assert shown_place("https://host/x.csv") == "https://host/x.csv"
    assert shown_place("/somewhere/of/mine/data") == "data"


@pytest.mark.slow
def test_figures_are_of_the_checkpoint_that_is_exported(checkpoint: Path, tmp_path: Path) -> None:
    """Of step 2, logged as 1 since steps are counted from 0, and not of what was trained from there."""
    run = checkpoint.parent.parent
    (run / "metrics.csv").write_text("step,val/loss\n0,9.25\n1,7.5\n2,8.125\n", encoding="utf-8")
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "second")]) == 0
    assert "| `val/loss` | 7.5000 |" in read(tmp_path / "second")[0]
    (run / "metrics.csv").write_text("step,val/loss\n0,9.25\n2,8.125\n", encoding="utf-8")
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "none")]) == 0
    assert "Nothing was measured" in read(tmp_path / "none")[0]


@pytest.mark.slow
def test_a_test_of_what_the_file_held_before_is_passed_over(checkpoint: Path, tested: Path, tmp_path: Path) -> None:
    later = (tested / "predictions.csv").stat().st_mtime + 10
    os.utime(checkpoint, (later, later))
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "x")]) == 0
    assert "It was not tested" in read(tmp_path / "x")[0]


@pytest.mark.slow
def test_words_of_rouge_are_those_of_the_test(
    checkpoint: Path, tested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tested / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["model"]["init_args"]["metrics"]["rouge"]["init_args"]["tokenizer"] = "unicode"
    config.write_text(yaml.safe_dump(settings))
    asked = []
    monkeypatch.setattr(
        "src.inference.card_figures.rouge_with_intervals", lambda _, words: asked.append(words) or (0, {})
    )
    words = ["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "x"), "--figures", str(tested)]
    assert main(words) == 0
    assert asked == ["unicode"]
