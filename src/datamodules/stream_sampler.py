"""Batches of data that is read as training goes on: shuffled in a buffer that is filled from several places."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from src.datamodules.sampler import DealtBatchSampler, bucket, generator_of, shuffled_batches
from src.errors import ParleyError

PLACES = 8  # of the data, that a buffer is filled from: neighbours are often alike, in a corpus put together of several


class BufferedBatchSampler(DealtBatchSampler):
    """Cuts data into global batches, of which those of one buffer come one after the other.

    The data is cut into stretches of equal length. Every epoch shuffles them, fills a buffer with the first few,
    shuffles what is in it as `LengthGroupedBatchSampler` does a whole dataset, deals it out, and fills the buffer anew.
    Stretches are whole global batches, so that every epoch has the same number of steps. Nothing is kept of the data
    but the number of its examples: what a buffer has in it follows from the seed and the epoch, so that a run that goes
    on fills its own again. Where all of the data fits into the buffer, the batches are those of a dataset in memory
    with the same lengths.

    Args:
        count: Examples, one at least.
        lengths: From a range of examples, first and one after the last, to the length of each, by which they are
            grouped: (stop - start,). Examples come as shuffled when left out.
        batch_size: Examples in a share.
        buffer: Examples in the buffer at most, but one global batch at least.
        **dealing: As for `DealtBatchSampler`.

    Attributes:
        stretch: Examples that are read together.
        stretches: Of them in the buffer at a time.
    """

    def __init__(
        self,
        count: int,
        lengths: Callable[[int, int], Tensor] | None = None,
        *,
        batch_size: int = 8,
        buffer: int = 10_000,
        **dealing: int,
    ) -> None:
        super().__init__(**dealing)
        if batch_size < 1 or buffer < 1:
            raise ParleyError(f"batch_size ({batch_size}) and shuffle_buffer ({buffer}) must be positive.")
        self.count = count
        self._lengths = lengths
        self._global_batch = batch_size * self.shares
        self.stretch = max(1, buffer // (PLACES * self._global_batch)) * self._global_batch
        self.stretches = max(1, -(-count // self.stretch) if count <= buffer else buffer // self.stretch)

    @property
    def steps(self) -> int:
        """Global batches of an epoch."""
        return -(-self.count // self._global_batch)

    def batches_from(self, step: int) -> Iterator[list[int]]:
        """This epoch's global batches, from one of them on."""
        for number, members in enumerate(self._buffers()):
            batches = -(-len(members) // self._global_batch)
            if step < batches:
                yield from self._of_buffer(number, members)[step:]
            step = max(0, step - batches)

    def _buffers(self) -> Iterator[Tensor]:
        """The examples of each buffer of this epoch, in the data's order."""
        count = -(-self.count // self.stretch)
        order = torch.arange(count)
        if count > self.stretches:
            order = torch.randperm(count, generator=self._generator(-1))
        for several in order.split(self.stretches):
            yield torch.cat([torch.arange(*self._bounds(number)) for number in sorted(several.tolist())])

    def _bounds(self, stretch: int) -> tuple[int, int]:
        return stretch * self.stretch, min((stretch + 1) * self.stretch, self.count)

    def _of_buffer(self, number: int, members: Tensor) -> list[list[int]]:
        cuts = [*range(0, len(members), self._global_batch), len(members)]
        keys = torch.zeros_like(members)
        if self._lengths is not None:
            stretches = dict.fromkeys((members // self.stretch).tolist())
            keys = bucket(torch.cat([self._lengths(*self._bounds(stretch)) for stretch in stretches]))
        return [members[batch].tolist() for batch in shuffled_batches(keys, cuts, self._generator(number))]

    def _generator(self, number: int) -> torch.Generator:
        """A buffer's own: it can be filled without those before it, and the first shuffles as a whole dataset does."""
        return generator_of(self.seed, self.epoch + number * 1_000_000_007)
