"""Gradients are clipped to what is asked for, whichever optimiser and precision."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from torch.optim import AdamW

from src.modules import Seq2SeqModule


class Watched(AdamW):
    """Notes the gradients that it is given."""

    def __init__(self, *args, seen: list[torch.Tensor], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.seen = seen

    def step(self, closure=None):
        loss = closure() if closure else None
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.seen.append(torch.cat(gradients).clone())
        super().step()
        return loss


def trained(base, precision: str, fused: bool, clip: float | None, algorithm: str = "norm") -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    torch.manual_seed(0)
    optimizer = partial(Watched, lr=1e-3, fused=fused, seen=seen)
    module = Seq2SeqModule(str(base), dropout=0.0, optimizer=optimizer)
    ids = torch.randint(5, 300, (4, 8), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    Trainer(
        accelerator="cpu", devices=1, max_epochs=1, precision=precision, logger=False, enable_checkpointing=False,
        gradient_clip_val=clip, gradient_clip_algorithm=algorithm, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, torch.utils.data.DataLoader([batch] * 2, batch_size=None, shuffle=False))  # fmt: skip
    return seen


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_the_norm_is_what_was_asked_for(tiny_base, precision, fused):
    free = trained(tiny_base("t5"), precision, fused, clip=None)
    assert all(gradient.float().norm() > 0.2 for gradient in free)
    clipped = trained(tiny_base("t5"), precision, fused, clip=0.1)
    assert len(clipped) == 2
    for gradient in clipped:
        assert float(gradient.float().norm()) == pytest.approx(0.1, rel=1e-2)
    torch.testing.assert_close(clipped[0].float() / 0.1, free[0].float() / free[0].float().norm(), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_each_value_is_what_was_asked_for(tiny_base, fused):
    free, _ = trained(tiny_base("t5"), "bf16-mixed", fused, clip=None)
    clipped, _ = trained(tiny_base("t5"), "bf16-mixed", fused, clip=0.01, algorithm="value")
    assert free.abs().max() > 0.01
    assert torch.equal(clipped, free.clamp(-0.01, 0.01))
