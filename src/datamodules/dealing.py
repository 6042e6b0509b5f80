"""Makes batch samplers that follow the trainer's settings: accumulation, processes, limits, repeated batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning.pytorch import Trainer
from torch import Tensor

from src.contracts import LearnsFromRollouts
from src.datamodules.sampler import LengthGroupedBatchSampler
from src.datamodules.stream_sampler import BufferedBatchSampler
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
        return LengthGroupedBatchSampler(
            lengths,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
            shuffle=True,
            group_by_length=self.group_by_length,
            **self._of_training(trainer),
        )

    def streamed(
        self, count: int, lengths: Callable[[int, int], Tensor], buffer: int, trainer: Trainer | None
    ) -> BufferedBatchSampler:
        """Shuffled batches of data that is read as training goes on.

        Args:
            count: Examples.
            lengths: From a range of examples to the length of each.
            buffer: Examples that are shuffled together.
            trainer: As for `training`.
        """
        return BufferedBatchSampler(
            count,
            lengths if self.group_by_length else None,
            batch_size=self.batch_size,
            buffer=buffer,
            **self._of_training(trainer),
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
        sampler = LengthGroupedBatchSampler(
            lengths,
            batch_size=self.batch_size,
            max_tokens=None,
            shuffle=False,
            group_by_length=self.group_by_length,
            **self._over_processes(trainer),
        )
        wanted = getattr(trainer, limit, 1.0)
        taken = int(wanted * len(sampler)) if isinstance(wanted, float) else wanted
        if 0 < taken < len(sampler):
            sampler.sample_batches = taken
            if trainer is not None and trainer.is_global_zero:
                examples = sum(map(len, sampler.global_batches()[:taken]))
                sample = "the same random sample every time"
                log.info("%s: %s takes %d of %d examples, %s.", part, limit, examples, len(lengths), sample)
        return sampler

    def _of_training(self, trainer: Trainer | None) -> dict[str, int]:
        """Batches of an optimiser step, and how often each is used; how a sampler is to deal them."""
        accumulate, uses = trainer.accumulate_grad_batches if trainer is not None else 1, 1
        if trainer is not None and isinstance(trainer.lightning_module, LearnsFromRollouts):
            if self.max_tokens is not None:
                raise ParleyError(
                    "max_tokens_per_batch is for fine-tuning: a batch of prompts has a fixed number; use batch_size."
                )
            accumulate, uses = 1, trainer.lightning_module.minibatches_per_rollout(self.batch_size)
        return self._over_processes(trainer) | {"accumulate": accumulate, "uses": uses}

    def _over_processes(self, trainer: Trainer | None) -> dict[str, int]:
        return {
            "seed": self.seed,
            "rank": trainer.global_rank if trainer is not None else 0,
            "world_size": trainer.world_size if trainer is not None else 1,
        }
