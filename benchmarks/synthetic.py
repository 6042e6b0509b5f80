"""Training steps on batches of random tokens, every row as long as every other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader

from benchmarks.device import Device
from src.contracts import Batch
from src.datamodules.encoding import Collator
from src.models.loading import load_tokenizer
from src.modules import CausalLMModule, Seq2SeqModule

MODULES = {"t5": Seq2SeqModule, "gpt2": CausalLMModule, "llama": CausalLMModule}
TARGET_SHARE = 4  # a row's tokens for one of its target


@dataclass(frozen=True)
class Plan:
    """What is trained on.

    Attributes:
        architecture: One of `MODULES`.
        base: The model's directory.
        length: Tokens of a row, prompt and target together.
        rows: In a batch.
        steps: Optimiser steps.
        precision: As Lightning says it.
    """

    architecture: str
    base: Path
    length: int
    rows: int
    steps: int
    precision: str

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.length * self.rows


class RandomRows(LightningDataModule):
    """A batch a step, each of other tokens.

    Args:
        plan: Of how many and how long rows.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.tokenizer = load_tokenizer(plan.base)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(list(self.batches()), batch_size=None)  # type: ignore[arg-type]

    def batches(self) -> list[Batch]:
        """All of them, the same ones every time."""
        chance = torch.Generator().manual_seed(0)
        special = len(self.tokenizer.all_special_ids)  # the first ids
        target = max(1, self.plan.length // TARGET_SHARE)
        collate = Collator(self.tokenizer.pad_token_id, is_encoder_decoder=self.plan.architecture == "t5")
        batches = []
        for _ in range(self.plan.steps):
            ids = torch.randint(
                special, len(self.tokenizer), (self.plan.rows, self.plan.length), generator=chance
            ).tolist()
            empty = {"id": "", "prompt": "", "references": [""], "is_filler": False, "index": 0}
            batches.append(collate([{"prompt_ids": row[target:], "target_ids": row[:target], **empty} for row in ids]))
        return batches


def train(plan: Plan, device: Device, callbacks: Sequence[Callback]) -> None:
    """Train the whole model as `fit` does, for as many steps as the plan has.

    Args:
        plan: What on.
        device: Where.
        callbacks: What watches.
    """
    torch.manual_seed(0)
    module = MODULES[plan.architecture](
        str(plan.base), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01)
    )
    Trainer(
        **device.trainer_options(plan.precision), max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), gradient_clip_val=1.0,
    ).fit(module, RandomRows(plan))  # fmt: skip
