"""A checkpoint of a moment's training, for the commands that read one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli import main


@pytest.fixture
def checkpoint(tiny_base: Callable[..., Path], tmp_path: Path) -> Path:
    """Of two steps of a LoRA chatbot of rank 3 on the tiny GPT-2."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"Q": f"q {n}", "A": f"a {n}"}) + "\n" for n in range(4)))
    words = ["fit", "-c", "configs/chatbot_lora.yaml", "-c", "configs/trainer/cpu.yaml", "--trainer.max_steps", "2"]
    settings = {
        "model.init_args.model_name_or_path": str(tiny_base("gpt2")),
        "model.init_args.lora.r": "3",
        "data.init_args.path": str(rows),
        "data.init_args.validation_split": "train",
        "data.init_args.batch_size": "2",
        "data.init_args.cache_dir": str(tmp_path / "cache"),
        "trainer.default_root_dir": str(tmp_path / "run"),
        "trainer.limit_val_batches": "0",
    }
    assert main([*words, *(f"--{key}={value}" for key, value in settings.items())]) == 0
    return max((tmp_path / "run").rglob("step=*.ckpt"))
