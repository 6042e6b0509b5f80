"""Every Module trains, goes on to the bit and is tested on a pretended GPU: no operation mixes two devices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import src.commands.trainer  # noqa: F401  (imports what reads torch's devices, before one is pretended)
from src.callbacks.storage import read_checkpoint
from tests.every_method import METHODS, keeping, parley, recipe, run_again_from_its_middle
from tests.pretended.gpu import PretendedGPU
from tests.small_fit import same_to_the_bit

QUICK = ("lora", "bf16-mixed")
MIXED, TRUE = ("seq2seq", "lora", "grpo", "dpo"), ("seq2seq", "ppo")
RUNS = [
    *((method, "32-true") for method in METHODS if method not in MIXED),
    *((method, "bf16-mixed") for method in MIXED),
    *((method, "bf16-true") for method in TRUE),
]


@pytest.fixture
def gpu() -> Iterator[PretendedGPU]:
    with PretendedGPU() as pretended:
        yield pretended


@pytest.mark.parametrize(
    ("method", "precision"), [pytest.param(*run, marks=[] if run == QUICK else [pytest.mark.slow]) for run in RUNS]
)
def test_trains_goes_on_and_is_tested(gpu, tiny_base, tmp_path, method, precision):
    """With dropout, whose random numbers are the GPU's, and a validation with sampled answers in the middle."""
    settings = {"accelerator": "gpu", "precision": precision}
    same_to_the_bit(*run_again_from_its_middle(method, tiny_base, tmp_path, **settings))


@pytest.mark.slow
def test_learns_on_it_what_it_learns_on_a_cpu(tiny_base, tmp_path):
    """In float32, without dropout: what the other device's kernels round differently is not pretended."""
    weights = {}
    for device in ("cpu", "gpu"):
        file = recipe("seq2seq", tiny_base, tmp_path / device, accelerator=device, callbacks=keeping(2))
        words = ("fit", "-c", file, "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0")
        words += ("--model.init_args.dropout", "0", "--model.init_args.speed_ups", "false")
        if device == "gpu":
            with PretendedGPU():
                parley(*words)
        else:
            parley(*words)
        [saved] = (tmp_path / device / "runs" / "version_0" / "checkpoints").glob("step=*.ckpt")
        weights[device] = read_checkpoint(saved)["state_dict"]
    assert weights["cpu"].keys() == weights["gpu"].keys()
    for name, weight in weights["cpu"].items():
        torch.testing.assert_close(weights["gpu"][name], weight, rtol=1e-4, atol=1e-5, msg=name)
