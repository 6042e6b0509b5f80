"""A step learns the same from its tokens, whether they come in one batch or in several of unequal size."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from torch.optim import SGD

from src.contracts import IGNORE_INDEX
from src.modules import Seq2SeqModule

LENGTHS = [2, 9, 4, 7, 5]  # tokens of each example's target


def examples() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, 300, (len(LENGTHS), max(LENGTHS)), generator=generator)
    labels[torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]] = IGNORE_INDEX
    ids = torch.randint(5, 300, (len(LENGTHS), 8), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def batch_of(cut: slice | None) -> dict[str, torch.Tensor]:
    """These examples; for None a filler, which has nothing to learn from."""
    batch = {name: tensor[cut or slice(0, 1)] for name, tensor in examples().items()}
    return batch if cut else batch | {"labels": torch.full_like(batch["labels"], IGNORE_INDEX)}


def trained(base, cuts: list[slice | None], accumulate: int) -> tuple[torch.Tensor, list[float]]:
    """Weights after training on these cuts of the examples, and each step's loss."""
    shown: list[float] = []

    class Recorder(Seq2SeqModule):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            shown.append(float(self.trainer.callback_metrics["train/loss"]))

    torch.manual_seed(0)
    module = Recorder(str(base), dropout=0.0, optimizer=lambda parameters: SGD(parameters, lr=0.5))
    batches = [batch_of(cut) for cut in cuts]
    Trainer(
        accelerator="cpu", devices=1, max_epochs=1, accumulate_grad_batches=accumulate, gradient_clip_val=1.0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, torch.utils.data.DataLoader(batches, batch_size=None, shuffle=False))  # fmt: skip
    ends = [index for index in range(len(cuts)) if (index + 1) % accumulate == 0 or index + 1 == len(cuts)]
    return torch.cat([p.detach().flatten() for p in module.parameters()]), [shown[index] for index in ends]


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param([slice(0, 1), slice(1, 4), slice(4, 5)], id="unequal, the last step with one batch"),
        pytest.param([slice(0, 2), slice(2, 4), slice(4, 5)], id="equal rows, unequal tokens"),
        pytest.param([slice(0, 4), None, slice(4, 5), None], id="fillers last"),
        pytest.param([None, slice(0, 4), None, slice(4, 5)], id="fillers first"),
    ],
)
def test_a_steps_loss_and_gradient_do_not_depend_on_the_cut(tiny_base, cuts):
    whole, losses = trained(tiny_base("t5"), [slice(0, 4), slice(4, 5)], accumulate=1)
    cut, cut_losses = trained(tiny_base("t5"), cuts, accumulate=2)
    torch.testing.assert_close(cut, whole, atol=1e-6, rtol=1e-5)
    assert cut_losses == pytest.approx(losses, abs=1e-5)
