"""Every Module on a real GPU: it trains, validates, goes on, is tested and exported."""

from __future__ import annotations

import pytest

from src.callbacks.storage import read_checkpoint
from tests.every_method import METHODS, STEPS, parley, run_again_from_its_middle
from tests.small_fit import same_to_the_bit

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
ON_GPU = [
    pytest.param(method, "gpu", precision, marks=pytest.mark.gpu) for method in METHODS for precision in PRECISIONS
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "device", "precision"), [("lora", "cpu", "bf16-mixed"), *ON_GPU])
def test_trains_goes_on_is_tested_and_exported(tiny_base, tmp_path, method, device, precision):
    _, last = run_again_from_its_middle(method, tiny_base, tmp_path, accelerator=device, precision=precision)
    saved = read_checkpoint(last)
    assert saved["global_step"] == 2 * STEPS.get(method, 2)
    assert all(bool(weight.isfinite().all()) for weight in saved["state_dict"].values())
    parley("export", "--checkpoint", last, "--output", tmp_path / "exported")
    assert list((tmp_path / "exported").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("method", "device"),
    [
        pytest.param("lora", "cpu", marks=pytest.mark.slow),
        *(pytest.param(method, "gpu", marks=pytest.mark.gpu) for method in METHODS),
    ],
)
def test_goes_on_to_the_bit(tiny_base, tmp_path, monkeypatch, deterministic, method, device):
    """With deterministic algorithms, which raise where CUDA has none."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings = {"accelerator": device, "precision": "bf16-mixed", "deterministic": True}
    same_to_the_bit(*run_again_from_its_middle(method, tiny_base, tmp_path, **settings))
