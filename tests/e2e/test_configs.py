"""Every recipe in configs/ parses, instantiates and trains a step on a tiny base."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("demo/*.yaml")])
TRAINERS = sorted(CONFIGS.glob("trainer/*.yaml"))
LOGGERS = sorted(CONFIGS.glob("logger/*.yaml"))
ARCHITECTURES = {"Seq2SeqModule": "t5", "CausalLMModule": "gpt2"}


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def settings(recipe: Path) -> dict:
    return yaml.safe_load(recipe.read_text())


@pytest.mark.parametrize("recipe", [r for r in RECIPES if "ppo" not in r.name], ids=name)
def test_recipe_trains_a_step(parley, tiny_base, sample, real_data, recipe):
    config = settings(recipe)
    architecture = ARCHITECTURES[config["model"]["class_path"]]
    base = tiny_base(architecture)
    data = (
        sample if config["data"]["class_path"] == "DialogSumDataModule" else real_data / "chatbot" / "ChatbotData.csv"
    )
    assert config["model"]["init_args"]["model_name_or_path"]
    words = ["-c", recipe, "--model.init_args.model_name_or_path", base, "--data.init_args.path", data]
    if config["model"]["init_args"].get("gguf_file"):
        words += ["--model.init_args.gguf_file", "null"]
    if config["data"]["init_args"].get("format") == "chat":  # the tiny base has no chat template
        words += ["--data.init_args.format", "plain"]
    if "target_modules: [q, v]" in recipe.read_text() and architecture != "t5":
        words += ["--model.init_args.lora.target_modules", "all-linear"]
    words += ["--model.init_args.generation.max_new_tokens", "4", "--data.init_args.batch_size", "2"]
    assert parley("fit", *words, "--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu") == 0


@pytest.mark.parametrize("addition", TRAINERS + LOGGERS, ids=name)
def test_additions_compose_with_a_recipe(parley, capsys, addition):
    recipe = CONFIGS / "dialogsum_lora.yaml"
    with pytest.raises(SystemExit) as left:
        parley("fit", "-c", recipe, "-c", addition, "--print_config")
    assert left.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    wanted = settings(addition)["trainer"]
    for key, value in wanted.items():
        if not isinstance(value, (dict, list)):
            assert printed["trainer"][key] == value
    assert printed["model"]["init_args"]["lora"]["init_args"]["r"] == 32


def test_the_published_settings_are_the_recipes():
    whole, lora = (settings(CONFIGS / f"dialogsum_{kind}.yaml")["model"]["init_args"] for kind in ("seq2seq", "lora"))
    assert whole["model_name_or_path"] == lora["model_name_or_path"] == "google/flan-t5-base"
    assert whole["optimizer"]["init_args"] == {"lr": 1e-5, "weight_decay": 0.01}
    assert lora["optimizer"]["init_args"]["lr"] == 1e-3
    published = {"r": 32, "lora_alpha": 32, "target_modules": ["q", "v"], "lora_dropout": 0.05, "bias": "none"}
    assert lora["lora"] == published
