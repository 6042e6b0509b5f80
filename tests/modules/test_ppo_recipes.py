"""PPO's recipes parse, train a step on tiny bases, and say what was published."""

import json
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig

from src.cli import main
from src.models.loading import load_model, load_tokenizer
from src.models.lora import add_lora
from src.models.saving import save_adapter

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize(
    ("recipe", "architecture"),
    [("dialogsum_ppo", "t5"), ("dialogsum_causal_ppo", "llama"), ("demo/dialogsum_ppo", "t5")],
)
def test_recipe_trains_a_step(tiny_base, sample, tmp_path, monkeypatch, recipe, architecture):
    pytest.importorskip("profanity_check")
    monkeypatch.chdir(tmp_path)
    base = tiny_base(architecture)
    adapter = tmp_path / "adapter"
    save_adapter(add_lora(load_model(base), LoraConfig(target_modules="all-linear")), load_tokenizer(base), adapter)
    words = ["fit", "-c", str(CONFIGS / f"{recipe}.yaml"), "--model.init_args.model_name_or_path", str(adapter)]
    words += ["--data.init_args.path", str(sample), "--data.init_args.batch_size", "2"]
    words += ["--data.init_args.format", "plain"] if architecture == "llama" else []
    words += ["--model.init_args.rollout.output_min_length", "8", "--model.init_args.rollout.output_max_length", "9"]
    words += ["--model.init_args.generation.max_new_tokens", "4", "--trainer.fast_dev_run", "1"]
    if recipe == "dialogsum_ppo":
        words += ["--model.init_args.toxicity", "null"]
        words += ["--model.init_args.reward", json.dumps({"class_path": "ProfanityReward"})]
    assert main([*words, "--trainer.accelerator", "cpu"]) == 0


def test_the_published_settings_are_the_recipes():
    recipe = yaml.safe_load((CONFIGS / "dialogsum_ppo.yaml").read_text())
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    reward = {"model_name_or_path": "facebook/roberta-hate-speech-dynabench-r4-target"}
    assert model["reward"]["init_args"] == reward | {"label": "nothate", "output": "logit"}
    assert model["optimizer"]["init_args"]["lr"] == 1.41e-5
    assert (data["batch_size"], model["ppo"]["minibatch_size"], recipe["trainer"]["max_epochs"]) == (16, 4, 1)
    expected = {"min_new_tokens": 5, "output_min_length": 100, "output_max_length": 400, "top_k": 0, "top_p": 1.0}
    assert model["rollout"] == expected
    assert (data["min_chars"], data["max_chars"], data["template"]) == (200, 1000, "summarize-zero-shot")
    assert (data["train_split"], data["validation_split"]) == ("train[:80%]", "train[80%:]")


def test_a_reward_s_complaint_is_one_line(tiny_base, sample, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "-c", str(CONFIGS / "demo" / "dialogsum_ppo.yaml"), "--data.init_args.path", str(sample)]
    words += ["--model.init_args.model_name_or_path", str(tiny_base("t5")), "--trainer.accelerator", "cpu"]
    reward = {"class_path": "ClassifierReward", "init_args": {"model_name_or_path": str(tmp_path / "nothing")}}
    assert main([*words, "--model.init_args.reward", json.dumps(reward)]) == 2
    assert "the classifier" in capfd.readouterr().err.strip().splitlines()[-1]
    assert main([*words, "--model.init_args.rollout.temperature", "0"]) == 2
    assert "rollout.temperature is 0" in capfd.readouterr().err.strip().splitlines()[-1]
