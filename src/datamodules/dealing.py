"""Makes batch samplers that follow the trainer's settings: accumulation, processes, limits, repeated batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch import Trainer

from src.contracts import LearnsFromRollouts
from src.datamodules.sampler import LengthGroupedBatchSampler
from src.errors import ParleyError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dealing:
    """How examples are batched; the attributes are the DataModule's settings of the same names.

    Attributes:
        batch_size: Examples per batch and process.
        max_tokens: In training, the token budget of a batch, instead of `batch_size`.
        group_by_length: Batch examples of similar length together.
        seed: The seed of the shuffling.
    """

    batch_size: int
    max_tokens: int | None
    group_by_length: bool
    seed: int

    def training(self, lengths: Sequence[int], trainer: Trainer | None) -> LengthGroupedBatchSampler:
        """A sampler of shuffled batches.

        Args:
            lengths: Tokens of each example.
            trainer: The trainer, whose accumulation and Module decide how many batches a step takes and how often each
                is used.

        Raises:
            ParleyError: Batches have a token budget, but the Module samples answers to a fixed number of prompts.
        """
        accumulate, uses = trainer.accumulate_grad_batches if trainer is not None else 1, 1
        if trainer is not None and isinstance(trainer.lightning_module, LearnsFromRollouts):
            if self.max_tokens is not None:
                raise ParleyError(
                    "max_tokens_per_batch is for fine-tuning: a batch of prompts has a fixed number; use batch_size."
                )
            accumulate, uses = 1, trainer.lightning_module.minibatches_per_rollout(self.batch_size)
        return self._sampler(
            lengths, trainer, max_tokens=self.max_tokens, shuffle=True, accumulate=accumulate, uses=uses
        )

    def evaluation(
        self, lengths: Sequence[int], trainer: Trainer | None, *, part: str, limit: str
    ) -> LengthGroupedBatchSampler:
        """A sampler of every example once over all processes; of a random sample if the trainer limits the batches.

        Args:
            lengths: Tokens of each example.
            trainer: The trainer, with the limit.
            part: The split, for the log.
            limit: The name of the trainer's limit.
        """
        sampler = self._sampler(lengths, trainer)
        wanted = getattr(trainer, limit, 1.0)
        taken = int(wanted * len(sampler)) if isinstance(wanted, float) else wanted
        if 0 < taken < len(sampler):
            sampler.sample_batches = taken
            if trainer is not None and trainer.is_global_zero:
                examples = sum(map(len, sampler.global_batches()[:taken]))
                sample = "the same random sample every time"
                log.info("%s: %s takes %d of %d examples, %s.", part, limit, examples, len(lengths), sample)
        return sampler

    def _sampler(
        self,
        lengths: Sequence[int],
        trainer: Trainer | None,
        *,
        max_tokens: int | None = None,
        shuffle: bool = False,
        accumulate: int = 1,
        uses: int = 1,
    ) -> LengthGroupedBatchSampler:
        return LengthGroupedBatchSampler(
            lengths,
            batch_size=self.batch_size,
            max_tokens=max_tokens,
            shuffle=shuffle,
            group_by_length=self.group_by_length,
            seed=self.seed,
            rank=trainer.global_rank if trainer is not None else 0,
            world_size=trainer.world_size if trainer is not None else 1,
            accumulate=accumulate,
            uses=uses,
        )
