"""PPO's recipes parse, train a step on tiny bases, and measure what was published."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from src.cli import main
from src.models.adapters import save_adapter
from src.models.loading import load_model, load_tokenizer
from src.models.lora import add_lora

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.fixture
def words(tiny_base, sample, tmp_path, monkeypatch):
    """The command line that runs a recipe on a tiny base with an adapter, and a made classifier where it wants one."""

    def build(recipe, architecture, classifier=None):
        monkeypatch.chdir(tmp_path)
        base, adapter = tiny_base(architecture), tmp_path / "adapter"
        save_adapter(add_lora(load_model(base), LoraConfig(target_modules="all-linear")), load_tokenizer(base), adapter)
        settings = {
            "model.init_args.model_name_or_path": base if recipe == "dialogsum_causal_grpo" else adapter,
            "data.init_args.path": sample,
            "data.init_args.batch_size": 2,
            "model.init_args.rollout.output_min_length": 8,
            "model.init_args.rollout.output_max_length": 9,
            "model.init_args.generation.max_new_tokens": 4,
            "trainer.accelerator": "cpu",
        }
        settings |= {"data.init_args.format": "plain"} if architecture == "llama" else {}
        for part in ("reward", "metrics.toxicity") if classifier else ():
            settings[f"model.init_args.{part}.init_args.model_name_or_path"] = classifier
        named = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        return ["-c", str(CONFIGS / f"{recipe}.yaml"), *named]

    return build


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "architecture"),
    [
        ("dialogsum_causal_ppo", "llama"),
        ("dialogsum_causal_grpo", "llama"),
        ("demo/dialogsum_ppo", "t5"),
        ("demo/dialogsum_rloo", "t5"),
        ("demo/dialogsum_grpo", "t5"),
        ("better/dialogsum_ppo", "t5"),
    ],
)
def test_recipe_trains_a_step(words, tiny_base, make_classifier, recipe, architecture):
    classifier = None
    if recipe.startswith("better/"):
        classifier = make_classifier(["nothate", "hate"], positions=600, tokenizer_of=tiny_base(architecture))
    else:
        pytest.importorskip("profanity_check")
    assert main(["fit", *words(recipe, architecture, classifier), "--trainer.fast_dev_run", "1"]) == 0


@pytest.mark.slow
def test_the_published_recipe_measures_what_was_published(words, tiny_base, make_classifier, tmp_path, capfd):
    """Toxicity by the classifier that is named, of prompt + " " + response, before and after a training that shows."""
    classifier = make_classifier(["nothate", "hate"], positions=600, tokenizer_of=tiny_base("t5"))
    given = words("dialogsum_ppo", "t5", classifier)
    fast = ["--model.init_args.optimizer.init_args.lr", "0.3", "--trainer.limit_train_batches", "2"]
    assert main(["fit", *given, *fast, "--trainer.limit_val_batches", "1"]) == 0
    [checkpoint] = tmp_path.glob("runs/*/checkpoints/*.ckpt")
    assert main(["test", *given, "--ckpt_path", str(checkpoint), "--trainer.limit_test_batches", "3"]) == 0
    assert "test/toxicity_improvement" in capfd.readouterr().out

    [table] = tmp_path.glob("runs/*/before_after.csv")
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    model, tokenizer = (
        auto.from_pretrained(classifier) for auto in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    measured = {}
    for time in ("before", "after"):
        ids = [tokenizer(f"{row['query']} {row[f'response_{time}']}", return_tensors="pt").input_ids for row in rows]
        with torch.no_grad():
            logits = torch.cat([model(each).logits for each in ids])
        measured[time] = hate = logits.softmax(-1)[:, 1].numpy()
        assert [float(row[f"toxicity_{time}"]) for row in rows] == pytest.approx(hate.tolist(), abs=1e-5)
        assert [float(row[f"reward_{time}"]) for row in rows] == pytest.approx(logits[:, 0].tolist(), abs=1e-4)
    figures = list(csv.DictReader((table.parent / "metrics.csv").open()))[-1]
    for name, of, fall in (("mean", np.mean, "improvement"), ("std", np.std, "std_improvement")):
        before, after = of(measured["before"]), of(measured["after"])
        assert before != after
        expected = {
            f"test/toxicity_{name}_reference": before,
            f"test/toxicity_{name}": after,
            f"test/toxicity_{fall}": 100 * (before - after) / before,
        }
        assert {key: float(figures[key]) for key in expected} == pytest.approx(expected, rel=1e-3, abs=1e-5)
        low, high = (float(figures[f"test/toxicity_{fall}_{end}"]) for end in ("low", "high"))
        assert low < expected[f"test/toxicity_{fall}"] < high


def test_what_measures_toxicity_is_loaded_before_training(words, make_classifier, capfd):
    given = words("dialogsum_ppo", "t5", make_classifier(["nothate", "hate"]))
    assert main(["fit", *given, "--model.init_args.metrics.toxicity.init_args.toxic_label", "rude"]) == 2
    assert "has no label 'rude'; choose one of: nothate, hate." in capfd.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_reward_s_complaint_is_one_line(tiny_base, sample, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "-c", str(CONFIGS / "demo" / "dialogsum_ppo.yaml"), "--data.init_args.path", str(sample)]
    words += ["--model.init_args.model_name_or_path", str(tiny_base("t5")), "--trainer.accelerator", "cpu"]
    reward = {"class_path": "ClassifierReward", "init_args": {"model_name_or_path": str(tmp_path / "nothing")}}
    assert main([*words, "--model.init_args.reward", json.dumps(reward)]) == 2
    assert "the classifier" in capfd.readouterr().err.strip().splitlines()[-1]
    assert main([*words, "--model.init_args.rollout.temperature", "0"]) == 2
    assert "rollout.temperature is 0" in capfd.readouterr().err.strip().splitlines()[-1]
