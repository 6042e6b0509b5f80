"""The frozen reference model of a policy: the policy as it was when training started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from src.models.fingerprint import fingerprint
from src.models.lora import ParameterCount
from src.models.tying import base_model
from src.parallel.sharding import shard_like


class Reference(nn.Module):
    """The policy at its start, in as little memory as possible.

    - A fresh adapter: the reference is the base, the adapter switched off; nothing is kept.
    - An adapter that is trained on, starts elsewhere than at its base or trains biases too: a copy of what is trained.
    - A whole model: a copy of its weights; of one that is about to be put in shards, of this process's shards alone.

    The copies are swapped with the policy's tensors while the reference is used. So the same module computes both, and
    where policy and reference are equal, results are bitwise equal. The copies are not in the state dict, since they
    are what training started from. (`trl.create_reference_model` copies the modules too, with the base.)

    Args:
        model: The policy at its start.
        is_continued: Whether an adapter from a directory is trained further, rather than a fresh one.
        until_followed: Have the policy's own tensors for copies until `follow` is called; nothing may change them.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, *, is_continued: bool, until_followed: bool = False) -> None:
        super().__init__()
        self.is_base = is_base_below_adapter(model, is_continued=is_continued)
        for index, parameter in enumerate(self._trained(model)):
            start = parameter.detach() if until_followed else parameter.detach().clone()
            copy = nn.Parameter(start, requires_grad=False)
            self.register_parameter(f"copy{index}", copy)
        self._fingerprint = "" if self.is_base else fingerprint(self)

    def follow(self, model: PreTrainedModel | PeftModel) -> None:
        """Shard the copies like the policy's parameters.

        Within `gathered` they are whole again, and can be swapped with the policy's.

        Args:
            model: The policy.
        """
        for (name, copy), parameter in zip(list(self.named_parameters()), self._trained(model), strict=True):
            self._parameters[name] = nn.Parameter(shard_like(copy.detach(), parameter), requires_grad=False)

    def _trained(self, model: PreTrainedModel | PeftModel) -> list[nn.Parameter]:
        return [] if self.is_base else [parameter for parameter in model.parameters() if parameter.requires_grad]

    @contextmanager
    def active(self, model: PreTrainedModel | PeftModel) -> Iterator[PreTrainedModel | PeftModel]:
        """Within the block the policy's model is the reference, without gradients.

        Args:
            model: The policy; no graph through it may wait for its backward pass.

        Yields:
            The model to call.
        """
        if self.is_base:
            assert isinstance(model, PeftModel)
            with torch.no_grad(), model.disable_adapter():
                yield base_model(model)
            return
        trained = self._trained(model)
        self._trade(trained)
        try:
            with torch.no_grad():
                yield model
        finally:
            self._trade(trained)

    def _trade(self, trained: list[nn.Parameter]) -> None:
        for parameter, copy in zip(trained, list(self.parameters()), strict=True):
            # A gathered policy may be in lower precision than float32.
            parameter.data, copy.data = copy.data.to(parameter.dtype), parameter.data

    def parameter_count(self, model: PreTrainedModel | PeftModel) -> ParameterCount:
        """The reference's parameters, of which none is trained."""
        frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
        return ParameterCount(0, frozen + sum(copy.numel() for copy in self.parameters()))

    def fingerprint(self) -> str:
        """A hash of the copies; empty without copies."""
        return self._fingerprint

    def _save_to_state_dict(self, *_args: Any, **_kwargs: Any) -> None:
        """Save nothing: the copies are what training started from."""

    def _load_from_state_dict(self, *_args: Any, **_kwargs: Any) -> None:
        """Load nothing, as nothing is saved."""


def is_base_below_adapter(model: PreTrainedModel | PeftModel, *, is_continued: bool) -> bool:
    """Whether the reference is the base with the adapter switched off, so that no copy is needed.

    Args:
        model: The policy at its start.
        is_continued: Whether an adapter from a directory is trained further.
    """
    return isinstance(model, PeftModel) and not is_continued and _starts_at_base(model)


def _starts_at_base(model: PeftModel) -> bool:
    """Whether the adapter initially changes nothing, and only the adapter is trained.

    PiSSA and OLoRA also change the base, and trained biases of the base stay changed when the adapter is switched off.
    """
    config = model.active_peft_config
    starts_at_zero = getattr(config, "init_lora_weights", False) in (True, "gaussian")
    return starts_at_zero and getattr(config, "bias", "none") == "none"
