"""`parley inspect` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from src.cli import main


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["inspect", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def stock(name: str) -> Any:
    kind = AutoModelForCausalLM if "gpt2" in name or "llama" in name else AutoModelForSeq2SeqLM
    return kind.from_pretrained(name)


@pytest.mark.parametrize("architecture", ["t5", "bart", "gpt2", "llama"])
def test_parameters_are_those_of_transformers_and_peft(
    architecture: str, tiny_base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(tiny_base(architecture))
    model = stock(name)
    found = asked(capsys, name)
    assert found["parameters"] == {"all": model.num_parameters(), "trainable": model.num_parameters(), "frozen": 0}
    assert found["model"]["class"] == type(model).__name__
    targets = {"gpt2": ["c_attn"], "t5": ["q", "v"]}.get(architecture, ["q_proj", "v_proj"])
    trainable, total = get_peft_model(model, LoraConfig(r=3, target_modules=targets)).get_nb_trainable_parameters()
    found = asked(capsys, name, "--lora", f"r=3,target_modules=[{','.join(targets)}]")
    assert found["parameters"] == {"all": total, "trainable": trainable, "frozen": total - trainable}
    assert found["adapter to be"]["target_modules"] == ", ".join(sorted(targets))


def test_the_counts_are_printed_as_published(
    tiny_base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(tiny_base("t5"))
    assert main(["inspect", name]) == 0
    count = stock(name).num_parameters()
    assert capsys.readouterr().out.endswith(
        f"trainable model parameters: {count}\nall model parameters: {count}\n"
        "percentage of trainable model parameters: 100.00%\n"
    )


@pytest.mark.slow
def test_a_checkpoint_and_an_adapter_say_what_they_hold(
    checkpoint: Path, tiny_base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(tiny_base("gpt2"))
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "adapter")]) == 0
    capsys.readouterr()
    found = asked(capsys, str(checkpoint))
    assert found["checkpoint"]["steps"] == 2
    assert found["checkpoint"]["trained from"] == name
    assert found["checkpoint"]["holds"] == "an adapter (LORA)"
    assert found["checkpoint"]["training can go on"] == "yes"
    adapter = asked(capsys, str(tmp_path / "adapter"))
    assert Path(adapter["adapter"]["base"]) == Path(name)
    assert adapter["adapter"]["r"] == "3"
    assert adapter["parameters"] == found["parameters"]
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert adapter["parameters"]["trainable"] == sum(tensor.numel() for tensor in weights.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lora", "32"], "is not understood"),
        (["--lora", "r=[3"], "is not understood"),
        (["--lora", "colour=3"], "colour"),
        (["--lora", "r=3,target_modules=[nothing]"], "nothing"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, tiny_base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tiny_base("t5")), *words]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
