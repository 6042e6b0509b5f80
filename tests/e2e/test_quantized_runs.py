"""The road of a user with a base in 4 bits, or in 16: fit, resume, export, load with stock libraries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from src.inference.export import restore
from tests.e2e.test_fit_and_export import checkpoint_of, options

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[quantization]'")

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = {"t5": "dialogsum_lora.yaml", "gpt2": "dialogsum_causal_lora.yaml"}
COMPUTE = "--model.init_args.quantization.bnb_4bit_compute_dtype"
ONE = ["--trainer.devices", "1", "--trainer.accelerator", "cpu"]
WAYS = {
    "nf4": ["-c", CONFIGS / "model/nf4.yaml", COMPUTE, "float32"],
    "bf16": ["--model.init_args.dtype", "bfloat16"],
}


def words(kind, way, base, sample):
    more = [] if kind == "t5" else ["--model.init_args.gguf_file", "null", "--data.init_args.format", "plain"]
    recipe = ["-c", CONFIGS / RECIPES[kind], *WAYS[way], *options(base, sample), *more]
    return [*recipe, "--trainer.precision", "32-true"]


def logits(model):
    ids = torch.arange(10, 34).view(2, 12)
    inputs = {"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **inputs).logits


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", RECIPES)
def test_trained_on_less_and_exported_onto_the_whole_base(parley, tmp_path, tiny_base, sample, kind, way):
    base, auto = tiny_base(kind), AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    assert parley("fit", *words(kind, way, base, sample)) == 0
    told = yaml.safe_load((tmp_path / "runs/version_0/hparams.yaml").read_text())
    of_base = told["weight_bytes"] - 4 * told["trainable_parameters"]
    plain = 4 * sum(parameter.numel() for parameter in auto.from_pretrained(base).parameters())
    assert plain / 4 < of_base < plain
    checkpoint = checkpoint_of(tmp_path)
    assert all("lora_" in name for name in torch.load(checkpoint, weights_only=True)["state_dict"])
    assert parley("export", "--checkpoint", checkpoint, "--output", tmp_path / "adapter") == 0
    assert parley("export", "--checkpoint", checkpoint, "--output", tmp_path / "merged", "--merge") == 0
    trained = logits(restore(checkpoint).model)
    whole = auto.from_pretrained(base)
    assert not torch.allclose(logits(whole), trained, atol=1e-4)
    adapted = PeftModel.from_pretrained(whole, tmp_path / "adapter")
    torch.testing.assert_close(logits(adapted), trained, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(auto.from_pretrained(tmp_path / "merged")), trained, rtol=1e-4, atol=1e-4)
    assert parley("test", *words(kind, way, base, sample), "--ckpt_path", checkpoint) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--model.init_args.lora", "null"], "quantization is for a frozen base"),
        ([COMPUTE, "bfloat15"], "bnb_4bit_compute_dtype"),
        (
            ["--model.init_args.quantization.load_in_4bit", "2"],
            "quantization: load_in_4bit must",
        ),
        (["--model.init_args.quantization.bnb_4bit_quant_typ", "nf4"], "bnb_4bit_quant_typ"),
        (["-c", CONFIGS / "trainer/fsdp.yaml", *ONE], "cannot be cut into shards"),
    ],
)
def test_what_does_not_go_is_one_line(parley, capsys, tiny_base, sample, wrong, said):
    assert parley("fit", *words("t5", "nf4", tiny_base("t5"), sample), *wrong) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("parley fit: ")
    assert said in error
    assert "Traceback" not in error
