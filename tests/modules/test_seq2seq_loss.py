"""Our loss, over the target's positions alone and on a CPU's faster path, is the model's own."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer

from src.contracts import IGNORE_INDEX
from src.models import cpu
from src.modules import Seq2SeqModule


@pytest.mark.parametrize("architecture", ["t5", "bart"])
@pytest.mark.parametrize("fast", [False, True])
def test_mean_loss_is_the_models(tiny_base, architecture, fast):
    module = Seq2SeqModule(str(tiny_base(architecture)), dropout=0.0)
    module.configure_model()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 300, (4, 12), generator=generator)
    mask = (torch.arange(12) < torch.tensor([12, 7, 3, 9])[:, None]).long()
    labels = torch.randint(5, 300, (4, 6), generator=generator)
    labels[torch.arange(6) >= torch.tensor([2, 6, 4, 1])[:, None]] = IGNORE_INDEX
    expected = module.model(input_ids=ids, attention_mask=mask, labels=labels).loss
    if fast:
        cpu.speed_up_on_cpu(module.model)
    loss_sum, count = module.loss_sum({"input_ids": ids, "attention_mask": mask, "labels": labels})
    assert count == 13
    torch.testing.assert_close(loss_sum / count, expected, atol=1e-5, rtol=0)


def test_training_on_a_cpu_takes_the_fast_path(tiny_base):
    module = Seq2SeqModule(str(tiny_base("t5")))
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    module.trainer = trainer
    module.configure_model()
    assert module.model.config._attn_implementation == cpu.ATTENTION
