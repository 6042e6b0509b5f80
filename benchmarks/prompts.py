"""The bundled dialogues, and the same batches of prompts for fine-tuning and for what learns from its own answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from benchmarks.device import ROOT
from src.contracts import Example, LearnsFromRollouts
from src.datamodules.encoding import Collator, encode_examples
from src.datamodules.sampler import LengthGroupedBatchSampler
from src.files import read_rows
from src.models.loading import load_tokenizer

SAMPLE = ROOT / "src" / "datamodules" / "sample"


def dialogues(count: int) -> list[str]:
    """The first of the bundled training dialogues, from the beginning again where there are fewer."""
    return list(islice(cycle(str(row.cells["dialogue"]) for row in read_rows(SAMPLE / "train.jsonl")), count))


class Prompts(LightningDataModule):
    """Deals prompts in the order given, a batch as often as the Module takes training steps on it.

    Args:
        base: The model's directory.
        examples: Prompts and targets.
        batch_size: Prompts in a batch.
        max_target_length: Tokens of a target.
        is_encoder_decoder: What kind of model it is.
    """

    def __init__(
        self,
        base: Path,
        examples: Sequence[Example],
        batch_size: int,
        max_target_length: int,
        *,
        is_encoder_decoder: bool = True,
    ) -> None:
        super().__init__()
        tokenizer = load_tokenizer(base)
        lengths = {"max_source_length": 512, "max_target_length": max_target_length}
        encoded = encode_examples(examples, tokenizer, is_encoder_decoder=is_encoder_decoder, **lengths)
        self.rows = [{**row, "is_filler": False, "index": index} for index, row in enumerate(encoded)]
        self.collate = Collator(pad_token_id=tokenizer.pad_token_id, is_encoder_decoder=is_encoder_decoder)
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        """One pass over the prompts."""
        assert self.trainer is not None
        module, uses = self.trainer.lightning_module, 1
        if isinstance(module, LearnsFromRollouts):
            uses = module.minibatches_per_rollout(self.batch_size)
        sampler = LengthGroupedBatchSampler(
            [1] * len(self.rows), batch_size=self.batch_size, group_by_length=False, uses=uses
        )
        return DataLoader(self.rows, batch_sampler=sampler, collate_fn=self.collate)  # type: ignore[arg-type]
