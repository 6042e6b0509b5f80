"""One way in for a checkpoint, an adapter, a directory and a hub name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from src.errors import ParleyError
from src.inference.loading import load_finished


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(10, 34).view(2, 12)
    extra = {"decoder_input_ids": ids[:, :7]} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **extra).logits


@pytest.mark.parametrize("architecture", ["t5", "bart", "gpt2", "llama"])
def test_every_form_is_the_same_model(
    architecture: str, forms: Callable[[str], dict[str, Path]], tiny_base: Callable[..., Path]
) -> None:
    places = forms(architecture)
    models = {name: load_finished(str(place), device="cpu") for name, place in places.items()}
    expected = logits(models["directory"].model)
    base = logits(load_finished(str(tiny_base(architecture)), device="cpu").model)
    assert not torch.allclose(base, expected, atol=1e-3)
    for finished in models.values():
        assert torch.allclose(logits(finished.model), expected, atol=1e-5)
        assert not isinstance(finished.model, PeftModel)
        assert not finished.model.training
        assert finished.tokenizer("안녕 <b>").input_ids == models["directory"].tokenizer("안녕 <b>").input_ids
        assert finished.is_encoder_decoder == (architecture in ("t5", "bart"))
        assert finished.positions == (None if architecture == "t5" else 1024)


def test_a_base_that_has_moved(
    forms: Callable[[str], dict[str, Path]], tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_base("gpt2"), moved)
    expected = logits(load_finished(str(forms("gpt2")["directory"]), device="cpu").model)
    for form in ("checkpoint", "adapter"):
        finished = load_finished(str(forms("gpt2")[form]), base_model=str(moved), device="cpu")
        assert torch.allclose(logits(finished.model), expected, atol=1e-5)


def test_weights_in_half_precision(forms: Callable[[str], dict[str, Path]]) -> None:
    for place in forms("t5").values():
        finished = load_finished(str(place), device="cpu", dtype="bfloat16")
        assert {parameter.dtype for parameter in finished.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("form", ["checkpoint", "whole checkpoint", "adapter", "directory"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_said_of_what_has_it(
    forms: Callable[[str], dict[str, Path]], tmp_path: Path, form: str, value: float
) -> None:
    place = forms("t5")[form]
    broken = tmp_path / place.name
    if place.is_file():
        content = torch.load(place, weights_only=True)
        name = sorted(content["state_dict"])[-1]
        content["state_dict"][name].view(-1)[0] = value
        content.pop("digest", None)
        torch.save(content, broken)
    else:
        shutil.copytree(place, broken)
        (file,) = broken.glob("*.safetensors")
        weights = load_file(file)
        weights[sorted(weights)[-1]].view(-1)[0] = value
        save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ParleyError, match=r"weights.* not finite.* 1 NaN") as error:
        load_finished(str(broken), device="cpu")
    assert str(broken) in str(error.value)


def test_what_cannot_be_loaded_is_said_in_one_line(
    forms: Callable[[str], dict[str, Path]], tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    places = forms("gpt2")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(places["checkpoint"], run / "checkpoints" / "step=0000012.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    cases: list[tuple[str, dict[str, str], str]] = [
        (str(tmp_path / "none.ckpt"), {}, "there is no such file"),
        (str(tmp_path / "text.ckpt"), {}, "cannot be read as a checkpoint"),
        (str(tmp_path / "none"), {}, "there is no model directory"),
        ("nobody/nothing", {}, "neither a directory here nor in the local cache"),
        (str(run), {}, r"is a run, not a model.*step=0000012\.ckpt"),
        (str(run / "checkpoints" / "last.ckpt"), {}, r"no such file \(beside it is step=0000012\.ckpt\)"),
        (str(places["checkpoint"]), {"gguf_file": "x.gguf"}, "leave --gguf-file out"),
        (str(tiny_base("gpt2")), {"base_model": "x"}, "leave --base-model out"),
        (str(tiny_base("gpt2")), {"gguf_file": "x.gguf"}, "has no file x.gguf"),
        (str(places["checkpoint"]), {"base_model": str(tiny_base("gpt2", seed=1))}, "has other weights"),
        (str(tiny_base("gpt2")), {"device": "cuda:9"}, "there is no device"),
        (str(tiny_base("gpt2")), {"device": "nonsense"}, "there is no device"),
    ]
    for name, options, said in cases:
        with pytest.raises(ParleyError, match=said) as error:
            load_finished(name, **options)
        assert "\n" not in str(error.value)
