"""A short run of every Module through the command, for tests of other devices than the usual one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

SAMPLE = Path(__file__).resolve().parents[1] / "src" / "datamodules" / "sample"
LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}}
ONLINE: dict[str, Any] = {"num_generations": 2, "minibatch_size": 4}
ROLLOUT = {"min_new_tokens": 2, "output_min_length": 4, "output_max_length": 8, "top_k": 50}
STEPS = {"ppo": 4, "rloo": 4, "grpo": 4}  # of the optimiser in an iteration
METHODS: dict[str, dict[str, Any]] = {
    "seq2seq": {"module": "Seq2SeqModule", "base": "t5"},
    "seq2seq-bart": {"module": "Seq2SeqModule", "base": "bart", "args": {"label_smoothing": 0.1}},
    "lora": {"module": "Seq2SeqModule", "base": "t5", "args": {"lora": LORA}},
    "causal": {"module": "CausalLMModule", "base": "gpt2"},
    "causal-packed": {"module": "CausalLMModule", "base": "llama", "data": {"packing": True}},
    "ppo": {"module": "PPOModule", "base": "t5", "args": {"lora": LORA, "ppo": ONLINE | {"ppo_epochs": 2}}},
    "rloo": {"module": "RLOOModule", "base": "gpt2", "args": {"rloo": ONLINE | {"num_iterations": 2}}},
    "grpo": {"module": "GRPOModule", "base": "llama", "args": {"lora": LORA, "grpo": ONLINE | {"num_iterations": 2}}},
    "dpo": {"module": "DPOModule", "base": "gpt2", "args": {"lora": LORA}},
    "dpo-cached": {"module": "DPOModule", "base": "t5", "args": {"dpo": {"reference": "cached"}}},
    "reward": {"module": "RewardModule", "base": "gpt2", "args": {"lora": LORA}},
}


def recipe(method: str, tiny_base: Callable[[str], Path], folder: Path, **trainer: Any) -> Path:
    """Write the settings of a short run, and the data that it needs.

    Args:
        method: One of `METHODS`.
        tiny_base: Makes bases.
        folder: For settings, caches and data.
        **trainer: Settings of the Trainer.

    Returns:
        The file of settings.
    """
    chosen = METHODS[method]
    folder.mkdir(parents=True, exist_ok=True)
    model: dict[str, Any] = {
        "model_name_or_path": str(tiny_base(chosen["base"])),
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        **chosen.get("args", {}),
    }
    if chosen["module"] != "RewardModule":  # which generates nothing
        model["generation"] = {"max_new_tokens": 4, "do_sample": True, "seed": 3}
    if method in STEPS:
        model |= {"reward": {"class_path": "LengthReward", "init_args": {"target": 5}}, "rollout": ROLLOUT}
    data: dict[str, Any] = {"path": str(SAMPLE), "train_split": "train[:32]", "validation_split": "validation[:4]"}
    data |= {"test_split": "validation[:2]", "batch_size": 4, "max_source_length": 48, "max_target_length": 16}
    name = "DialogSumDataModule"
    if chosen["module"] in ("DPOModule", "RewardModule"):
        pairs = [{"prompt": f"Why {n}?", "chosen": f"{n} it is.", "rejected": "No. " * n} for n in range(40)]
        file = folder / "pairs.jsonl"
        file.write_text("\n".join(map(json.dumps, pairs)))
        name, data = "PreferenceDataModule", data | {"path": str(file), "validation_split": "train[32:]"}
        data |= {"test_split": "train[36:]"}
    data |= {"cache_dir": str(folder / "cache"), **chosen.get("data", {})}
    settings = {
        "seed_everything": 1,
        "model": {"class_path": chosen["module"], "init_args": model},
        "data": {"class_path": name, "init_args": data},
        "trainer": {
            "devices": 1,
            "max_epochs": 4,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder / "runs"),
            **trainer,
        },
    }
    path = folder / f"{method}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def keeping(steps: int) -> list[dict[str, Any]]:
    """Callbacks that keep a checkpoint of every so-manieth step."""
    return [{"class_path": "Checkpoints", "init_args": {"every_n_steps": steps, "keep_last": 9}}]


def checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint of the only run."""
    [found] = (folder / "runs" / "version_0" / "checkpoints").glob(f"step=*{step}.ckpt")
    return found


def parley(*words: str | Path) -> None:
    """The command, which must succeed."""
    from src.cli import main

    assert main([str(word) for word in words]) == 0


def run_again_from_its_middle(
    method: str, tiny_base: Callable[[str], Path], folder: Path, **trainer: Any
) -> tuple[Path, Path]:
    """Train two iterations or steps with a validation between them, train once more from there, and test.

    Args:
        method: One of `METHODS`.
        tiny_base: Makes bases.
        folder: For settings, data and runs.
        **trainer: Settings of the Trainer.

    Returns:
        The last checkpoints of both.
    """
    half = STEPS.get(method, 2)
    file = recipe(
        method,
        tiny_base,
        folder,
        callbacks=keeping(half),
        val_check_interval=half,
        check_val_every_n_epoch=None,
        max_steps=2 * half,
        **trainer,
    )
    parley("fit", "-c", file)
    whole = checkpoint(folder, 2 * half).rename(folder / "whole.ckpt")
    parley("fit", "-c", file, "--ckpt_path", checkpoint(folder, half))
    again = checkpoint(folder, 2 * half)
    parley("test", "-c", file, "--ckpt_path", again)
    return whole, again
