"""Which tokens could be drawn at each place of a response.

A policy is sampled under restrictions: EOS is forbidden at first, top-k and top-p cut off the unlikely, some words are
banned. What could not be drawn has no probability, for the policy as for its reference: only over what is left is the
mean log-ratio a KL divergence, and is a ratio one of the distribution that was sampled from. What was left is decided
by the policy that sampled, so it is kept with the responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_LOWEST = -1e30
"""A logit of no probability: finite, for zero times minus infinity would make the entropy NaN."""


@dataclass(frozen=True, eq=False)
class Drawable:
    """For each place a set of tokens, as whichever takes least: the ids in it, the ids outside it, or bits.

    Attributes:
        data: (..., width), for each place: int32 ids, filled up with -1; or uint8, eight tokens in each.
        form: What `data` holds: the ids that are `kept`, those that are `excluded`, or `bits` (1 = kept).
    """

    data: Tensor
    form: Literal["kept", "excluded", "bits"]

    @classmethod
    def everything(cls, *shape: int, device: torch.device | str | None = None) -> Drawable:
        """No restriction at any place.

        Args:
            shape: Of the places.
            device: Where.
        """
        return cls(torch.empty(*shape, 0, dtype=torch.int32, device=device), "excluded")

    @classmethod
    def of(cls, kept: Tensor) -> Drawable:
        """Put sets into little memory.

        Args:
            kept: (places, vocabulary), true = may be drawn.
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
        """The sets of whole responses, (batch, steps), from those of each step.

        Args:
            steps: The rows (alive,) that drew a token and their sets (alive,); None where everything could be drawn.
            batch: How many responses there are.
            vocabulary: How many tokens there are.
            device: Where.
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
        """The sets of several batches of responses, one after the other.

        Args:
            parts: (batch, their time) each, at least one.
            time: To which all are filled up.
            vocabulary: How many tokens there are.
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
        """Of the places."""
        return self.data.shape[:-1]

    def __getitem__(self, index: Tensor | slice | tuple[slice, ...]) -> Drawable:
        """The sets of some places."""
        return replace(self, data=self.data[index])

    def to(self, device: torch.device | str) -> Drawable:
        """The same on another device."""
        return replace(self, data=self.data.to(device))

    def split(self, size: int) -> list[Drawable]:
        """Cut the first dimension."""
        return [replace(self, data=part) for part in self.data.split(size)]

    def mask(self, vocabulary: int) -> Tensor:
        """(..., vocabulary), true = may be drawn."""
        if self.form == "bits":
            return (self.data.unsqueeze(-1) & _powers(self.data.device)).flatten(-2)[..., :vocabulary] != 0
        listed = torch.zeros(*self.shape, vocabulary + 1, dtype=torch.bool, device=self.data.device)
        ids = self.data.long()
        listed.scatter_(-1, ids.where(ids >= 0, vocabulary), True)
        return listed[..., :vocabulary] if self.form == "kept" else ~listed[..., :vocabulary]

    def restrict(self, logits: Tensor) -> Tensor:
        """Logits after which a softmax gives no probability to what could not be drawn.

        Args:
            logits: (..., vocabulary).
        """
        if not self.data.shape[-1]:
            return logits
        return logits.masked_fill(~self.mask(logits.shape[-1]), _LOWEST)


def _ids(chosen: Tensor, width: int) -> Tensor:
    """(places, vocabulary) bool to (places, width) int32, filled up with -1."""
    found, ids = chosen.float().topk(width)
    return ids.masked_fill(found == 0, -1).int()


def _pack(kept: Tensor) -> Tensor:
    """(..., vocabulary) bool to (..., vocabulary / 8) uint8."""
    padded = F.pad(kept.to(torch.uint8), (0, -kept.shape[-1] % 8))
    return (padded.unflatten(-1, (-1, 8)) * _powers(kept.device)).sum(-1, dtype=torch.uint8)


def _powers(device: torch.device) -> Tensor:
    return (2 ** torch.arange(8, device=device)).to(torch.uint8)
