"""A supervised step on a real GPU does not wait for it, by torch's own word."""

from __future__ import annotations

import pytest
from transformers import masking_utils

from src.modules.breakdown import PATIENCE
from tests.every_method import parley, recipe
from tests.gpu.no_waits import NoWaits

ON_GPU = [
    pytest.param(method, "gpu", precision, marks=pytest.mark.gpu)
    for method in ("seq2seq", "lora", "causal", "reward")
    for precision in ("32-true", "bf16-mixed", "bf16-true")
]


@pytest.mark.parametrize(("method", "device", "precision"), [("lora", "cpu", "bf16-mixed"), *ON_GPU])
def test_a_supervised_step_waits_for_nothing(tiny_base, tmp_path, monkeypatch, method, device, precision):
    """But for transformers, which looks whether a batch has padding: here it takes for granted that one has."""
    monkeypatch.setattr(masking_utils, "_ignore_causal_mask_sdpa", lambda *args, **kwargs: False)
    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *args, **kwargs: False)
    monkeypatch.setattr(NoWaits, "watched", 0)
    file = recipe(
        method,
        tiny_base,
        tmp_path,
        accelerator=device,
        precision=precision,
        log_every_n_steps=100,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        max_steps=PATIENCE - 1,
        callbacks=[{"class_path": "tests.gpu.no_waits.NoWaits"}],
    )
    parley("fit", "-c", file)
    assert NoWaits.watched
