"""Which tokens could be sampled ("drawn") at each position of a response.

A policy is sampled under restrictions: EOS is forbidden at first, top-k and top-p cut off unlikely tokens, some words
are banned. Excluded tokens get probability 0, under the policy and under its reference: only then is the mean log-ratio
a KL divergence, and a probability ratio one of the distribution that was sampled from. The sets depend on the policy
that sampled, so they are stored with the responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_LOWEST = -1e30
"""The logit of excluded tokens; finite, because 0 times minus infinity would make the entropy NaN."""


@dataclass(frozen=True, eq=False)
class Drawable:
    """A set of tokens for each position, in the smallest form: the ids in it, the ids outside it, or a bitmap.

    Attributes:
        data: (..., width), for each position: int32 ids, padded with -1; or uint8, eight tokens in each.
        form: What `data` holds: the ids that are `kept`, those that are `excluded`, or `bits` (1 = kept).
    """

    data: Tensor
    form: Literal["kept", "excluded", "bits"]

    @classmethod
    def everything(cls, *shape: int, device: torch.device | str | None = None) -> Drawable:
        """Sets of all tokens.

        Args:
            shape: The shape of the positions.
            device: The device of the data.
        """
        return cls(torch.empty(*shape, 0, dtype=torch.int32, device=device), "excluded")

    @classmethod
    def of(cls, kept: Tensor) -> Drawable:
        """Compress sets given as a mask.

        Args:
            kept: (positions, vocabulary), true = may be drawn.
        """
        counts, vocabulary = kept.sum(-1), kept.shape[-1]
        inside, outside = torch.stack([counts.amax(), vocabulary - counts.amin()]).tolist()
        if 4 * min(inside, outside) > -(-vocabulary // 8):  # an id takes four bytes
            return cls(_pack(kept), "bits")
        return cls(_ids(kept, inside), "kept") if inside < outside else cls(_ids(~kept, outside), "excluded")

    @classmethod
    def assemble(
        cls, steps: Sequence[tuple[Tensor, Drawable] | None], batch: int, vocabulary: int, device: torch.device
    ) -> Drawable:
        """Combine the sets of each decoding step to those of whole responses, (batch, steps).

        Args:
            steps: For each step the rows (alive,) that drew a token and their sets (alive,); None for no restriction.
            batch: The number of responses.
            vocabulary: The size of the vocabulary.
            device: The device of the data.
        """
        forms = {"excluded" if step is None else step[1].form for step in steps}
        if len(forms) > 1 or "bits" in forms:
            bytes_needed = -(-vocabulary // 8)
            whole = cls(torch.full((batch, len(steps), bytes_needed), 255, dtype=torch.uint8, device=device), "bits")
        else:
            width = max((step[1].data.shape[-1] for step in steps if step is not None), default=0)
            ids = torch.full((batch, len(steps), width), -1, dtype=torch.int32, device=device)
            whole = cls(ids, "kept" if forms == {"kept"} else "excluded")
        for place, step in enumerate(steps):
            if step is not None:
                rows, sets = step
                data = sets.data if sets.form == whole.form else _pack(sets.mask(vocabulary))
                whole.data[rows, place, : data.shape[-1]] = data
        return whole

    @staticmethod
    def join(parts: Sequence[Drawable], time: int, vocabulary: int) -> Drawable:
        """Concatenate the sets of several batches of responses.

        Args:
            parts: Sets of shape (batch, own time), at least one.
            time: The time that all are padded to.
            vocabulary: The size of the vocabulary.
        """
        form = parts[0].form
        data = [part.data for part in parts]
        if any(part.form != form for part in parts):
            form, data = "bits", [part.data if part.form == "bits" else _pack(part.mask(vocabulary)) for part in parts]
        width = max(rows.shape[-1] for rows in data)
        padding = 255 if form == "bits" else -1
        data = [F.pad(rows, (0, width - rows.shape[-1], 0, time - rows.shape[1]), value=padding) for rows in data]
        return Drawable(torch.cat(data), form)

    @property
    def shape(self) -> torch.Size:
        """The shape of the positions."""
        return self.data.shape[:-1]

    def __getitem__(self, index: Tensor | slice | tuple[slice | Tensor, ...]) -> Drawable:
        """The sets of some positions."""
        return replace(self, data=self.data[index])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Drawable:
        """A copy on another device."""
        return replace(self, data=self.data.to(device, non_blocking=non_blocking))

    def split(self, size: int) -> list[Drawable]:
        """Split along the first dimension into parts of `size`."""
        return [replace(self, data=part) for part in self.data.split(size)]

    def mask(self, vocabulary: int) -> Tensor:
        """The sets as a boolean mask, (..., vocabulary), true = may be drawn."""
        if self.form == "bits":
            return (self.data.unsqueeze(-1) & _powers(self.data.device)).flatten(-2)[..., :vocabulary] != 0
        listed = torch.zeros(*self.shape, vocabulary + 1, dtype=torch.bool, device=self.data.device)
        ids = self.data.long()
        listed.scatter_(-1, ids.where(ids >= 0, vocabulary), True)
        return listed[..., :vocabulary] if self.form == "kept" else ~listed[..., :vocabulary]

    def restrict(self, logits: Tensor) -> Tensor:
        """Set the logits of excluded tokens so low that a softmax gives them probability 0.

        Args:
            logits: (..., vocabulary).
        """
        if not self.data.shape[-1]:
            return logits
        return logits.masked_fill(~self.mask(logits.shape[-1]), _LOWEST)


def _ids(chosen: Tensor, width: int) -> Tensor:
    """(positions, vocabulary) bool to (positions, width) int32, padded with -1."""
    found, ids = chosen.float().topk(width)
    return ids.masked_fill(found == 0, -1).int()


def _pack(kept: Tensor) -> Tensor:
    """(..., vocabulary) bool to (..., vocabulary / 8) uint8."""
    padded = F.pad(kept.to(torch.uint8), (0, -kept.shape[-1] % 8))
    return (padded.unflatten(-1, (-1, 8)) * _powers(kept.device)).sum(-1, dtype=torch.uint8)


def _powers(device: torch.device) -> Tensor:
    return (2 ** torch.arange(8, device=device)).to(torch.uint8)
