"""What `parley export` writes of a decoder-only model is served by `transformers serve` as it stands."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")

from src.cli import main  # noqa: E402
from tests.announcing import announced  # noqa: E402

COMMAND = shutil.which("transformers", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMMAND is None, reason="there is no `transformers` command")]


def test_its_answers_are_parley_s(
    tiny_base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"Q": f"q {n}", "A": f"a {n}"}) + "\n" for n in range(4)))
    settings = {
        "model.init_args.model_name_or_path": tiny_base("gpt2"),
        "data.init_args.path": rows,
        "data.init_args.validation_split": "train",
        "data.init_args.cache_dir": tmp_path / "cache",
        "trainer.default_root_dir": tmp_path / "run",
        "trainer.limit_val_batches": 0,
        "trainer.max_steps": 1,
    }
    words = ["fit", "-c", "configs/chatbot_lora.yaml", "-c", "configs/trainer/cpu.yaml"]
    assert main([*words, *(f"--{name}={value}" for name, value in settings.items())]) == 0
    checkpoint, whole = next((tmp_path / "run").rglob("step=*.ckpt")), tmp_path / "whole"
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(whole), "--merge"]) == 0
    asked = "Will you meet me"
    capsys.readouterr()
    limits = ["--max-new-tokens", "8", "--preset", "greedy"]
    assert main(["generate", str(whole), "--prompt", asked, "--format", "raw", *limits]) == 0
    wanted = capsys.readouterr().out.strip()
    assert COMMAND is not None
    server = [COMMAND, "serve", str(whole), "--port", "0", "--device", "cpu", "--dtype", "float32"]
    with announced(server) as (_, address, _lines):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=120)
        reply = client.completions.create(model=str(whole), prompt=asked, max_tokens=8, temperature=0)
    assert reply.choices[0].text.strip() == wanted != ""
