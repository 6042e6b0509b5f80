"""Every recipe in configs/ parses, instantiates and trains a step on a tiny base."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDERS = (CONFIGS, CONFIGS / "better", CONFIGS / "demo")
RECIPES = sorted({file for folder in FOLDERS for file in folder.glob("*.yaml")} - {CONFIGS / "callbacks.yaml"})
TRAINERS = sorted(CONFIGS.glob("trainer/*.yaml"))
LOGGERS = sorted(CONFIGS.glob("logger/*.yaml"))
ARCHITECTURES = {"Seq2SeqModule": "t5", "CausalLMModule": "gpt2", "RewardModule": "gpt2", "DPOModule": "gpt2"}


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def settings(recipe: Path) -> dict:
    return yaml.safe_load(recipe.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if not any(method in r.name for method in ("ppo", "rloo", "grpo"))], ids=name
)
def test_recipe_trains_a_step(parley, tiny_base, sample, tmp_path, recipe):
    config = settings(recipe)
    architecture = ARCHITECTURES[config["model"]["class_path"]]
    base = tiny_base(architecture)
    data = sample
    if config["data"]["class_path"] == "ChatbotDataModule":
        data = tmp_path / "chat.csv"
        data.write_text("\n".join(["Q,A,label", *(f"{n}시에 뭐 해?,{n}시에는 쉬어요.,0" for n in range(80))]))
    if config["data"]["class_path"] == "PreferenceDataModule":
        data = tmp_path / "pairs.jsonl"
        pairs = [{"prompt": f"Why {n}?", "chosen": f"{n} it is.", "rejected": "No."} for n in range(80)]
        data.write_text("\n".join(map(json.dumps, pairs)))
    if config["data"]["class_path"] == "ConversationDataModule":
        data = tmp_path / "talks.jsonl"
        said = [{"role": role, "content": "Hello there."} for role in ("user", "assistant") * 2]
        data.write_text("\n".join(json.dumps({"messages": said}) for _ in range(8)))
    assert config["model"]["init_args"]["model_name_or_path"]
    words = ["-c", recipe, "--model.init_args.model_name_or_path", base, "--data.init_args.path", data]
    if config["model"]["init_args"].get("gguf_file"):
        words += ["--model.init_args.gguf_file", "null"]
    if config["data"]["init_args"].get("format") == "chat":  # the tiny base has no chat template
        words += ["--data.init_args.format", "plain"]
    if "target_modules: [q, v]" in recipe.read_text() and architecture != "t5":
        words += ["--model.init_args.lora.target_modules", "all-linear"]
    if config["model"]["class_path"] != "RewardModule":  # which generates nothing
        words += ["--model.init_args.generation.max_new_tokens", "4"]
    words += ["--data.init_args.batch_size", "2"]
    assert parley("fit", *words, "--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu") == 0


def printed(parley, capsys, *files) -> dict:
    """The configuration that these files make, one after the other."""
    with pytest.raises(SystemExit) as left:
        parley("fit", *(word for file in files for word in ("-c", file)), "--print_config")
    assert left.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("addition", TRAINERS + LOGGERS, ids=name)
def test_additions_compose_with_a_recipe(parley, capsys, addition):
    made = printed(parley, capsys, CONFIGS / "dialogsum_lora.yaml", addition)
    for key, value in settings(addition)["trainer"].items():
        if not isinstance(value, (dict, list)):
            assert made["trainer"][key] == value
    assert made["model"]["init_args"]["lora"]["init_args"]["r"] == 32


# What runs on which machine: one of them is chosen, so they and the demo's `cpu` may contradict each other.
DEVICE = {"accelerator", "devices", "strategy", "precision"}


@pytest.mark.parametrize("first", RECIPES + TRAINERS + LOGGERS, ids=name)
def test_no_file_undoes_another(first):
    """Later keys win, so whatever two files both set must be the same; lists add up (`callbacks+`, `logger+`)."""
    for second in TRAINERS + LOGGERS:
        ours, theirs = (settings(file)["trainer"] for file in (first, second))
        both = {key for key in ours.keys() & theirs.keys() if not key.endswith("+")} - DEVICE
        assert {key for key in both if ours[key] != theirs[key]} == set(), name(second)
        assert not {"callbacks", "logger"} & (ours.keys() | theirs.keys()), "write callbacks+ or logger+"


@pytest.mark.parametrize("order", [1, -1], ids=["one order", "the other"])
def test_lists_of_files_add_up(parley, capsys, tmp_path, order):
    mine = tmp_path / "mine.yaml"
    watch = {"class_path": "Checkpoints", "init_args": {"monitor": "val/rouge1", "keep_last": 3}}
    stop = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}
    mine.write_text(yaml.safe_dump({"trainer": {"callbacks+": [watch, stop]}}))
    files = [mine, CONFIGS / "trainer/ddp.yaml", CONFIGS / "trainer/slurm.yaml", *LOGGERS]
    trainer = printed(parley, capsys, CONFIGS / "dialogsum_lora.yaml", *files[::order])["trainer"]
    assert (trainer["strategy"], trainer["devices"], trainer["precision"]) == ("ddp", "auto", "bf16-mixed")
    names = sorted(one["class_path"].split(".")[-1] for one in trainer["callbacks"] + trainer["logger"])
    assert names == ["Checkpoints", "Checkpoints", "EarlyStopping", "RunLogger", "TensorBoardLogger", "WandbRun"]


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1], ids=["one order", "the other"])
def test_settings_of_one_callback_from_two_files_are_one_callback_s(parley, tiny_base, sample, tmp_path, order):
    mine = tmp_path / "mine.yaml"
    watch = {"class_path": "Checkpoints", "init_args": {"monitor": "val/loss", "mode": "min", "keep_last": 3}}
    mine.write_text(yaml.safe_dump({"trainer": {"callbacks+": [watch]}}))
    files = [mine, CONFIGS / "trainer/slurm.yaml"][::order]
    words = ["-c", CONFIGS / "dialogsum_lora.yaml", *(word for file in files for word in ("-c", file))]
    words += ["--model.init_args.model_name_or_path", tiny_base("t5"), "--data.init_args.path", sample]
    words += ["--model.init_args.generation.max_new_tokens", "4", "--trainer.limit_train_batches", "1"]
    assert parley("fit", *words, "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu") == 0
    saved = yaml.safe_load((tmp_path / "runs/version_0/config.yaml").read_text())
    [made] = saved["trainer"]["callbacks"]
    expected = {"monitor": "val/loss", "mode": "min", "keep_last": 3, "every_n_minutes": 20.0, "every_n_steps": None}
    assert made["init_args"] == {**made["init_args"], **expected}
    assert (tmp_path / "runs/version_0/checkpoints/best.ckpt").is_file()


# What a notebook names, not how it trains: models, data, classes.
NAMES = ("class_path", "model_name_or_path", "path")


def tables() -> dict[str, dict[str, tuple[str, str]]]:
    """From a recipe to its settings in docs/recipes.md, each with the notebook's cell and the recipe's."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    recipes: list[str] = []
    for line in (CONFIGS.parent / "docs" / "recipes.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| under |"):
            recipes = [cell.strip("` |") for cell in cells[2:]]
            found |= {recipe: {} for recipe in recipes}
        elif line.startswith("| `"):
            for recipe, cell in zip(recipes, cells[2:], strict=True):
                found[recipe][cells[0].strip("` |")] = (cells[1], cell.strip("` |"))
    return found


def flat(tree: dict, prefix: str = "") -> dict[str, object]:
    leaves: dict[str, object] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


@pytest.mark.parametrize("recipe", sorted(tables()))
def test_a_recipe_has_the_settings_of_its_table(recipe):
    said = {key: yaml.safe_load(cell) for key, (_, cell) in tables()[recipe].items() if cell != "—"}
    has = {key: value for key, value in flat(settings(CONFIGS / recipe)).items() if key.split(".")[-1] not in NAMES}
    assert has == said


@pytest.mark.parametrize("recipe", [recipe for recipe in sorted(tables()) if "/" not in recipe])
def test_a_published_recipe_has_the_notebook_s_figures(recipe):
    compared = 0
    for key, (notebook, cell) in tables()[recipe].items():
        if figure := re.search(r"`\w+=([^`]+)`$", notebook):
            compared += 1
            assert yaml.safe_load(cell) == ast.literal_eval(figure[1]), key
    assert compared >= 5


@pytest.mark.parametrize("recipe", [recipe for recipe in sorted(tables()) if "/" not in recipe])
def test_beside_a_published_recipe_there_is_a_better_one(recipe):
    published, better = settings(CONFIGS / recipe), settings(CONFIGS / "better" / recipe)
    assert published != better
    for part in ("model", "data"):
        assert published[part]["class_path"] == better[part]["class_path"]
