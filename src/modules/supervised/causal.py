"""Fine-tuning a decoder-only model."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor

from src.contracts import IGNORE_INDEX, Batch
from src.errors import ParleyError
from src.models.adapter_checks import base_is_whole
from src.models.tying import base_model
from src.modules.supervised.base import SupervisedModule
from src.parallel.gathering import gathered

LEAK_TOLERATED = 0.5  # of `_leak`, which is near 0 or near 1


class CausalLMModule(SupervisedModule):
    """Fine-tunes a decoder-only model, whole or with an adapter: GPT-2, KoGPT2, Llama, SmolLM2, Qwen and their like.

    Whether the response alone or all tokens are learned is decided by the batch's labels (`loss_on` of the DataModule).
    The arguments are those of `SupervisedModule`.
    """

    is_encoder_decoder = False

    def on_fit_start(self) -> None:
        """Have packing tested again at the first packed batch."""
        self._keeps_packed_apart = False

    def aligned_labels(self, batch: Batch) -> Tensor:
        """The next token of each position."""
        return F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)

    def check(self, batch: Batch) -> None:
        """Refuse a packed batch if the model does not keep its examples apart."""
        if "position_ids" in batch:
            self._require_packing()

    def model_logits(self, batch: Batch) -> Tensor:
        """The logits along the texts."""
        if "position_ids" in batch:  # packed: without a mask transformers derives one from the position ids
            context = {"attention_mask": None, "position_ids": batch["position_ids"]}
        else:
            context = {"attention_mask": batch["attention_mask"]}
        return self.policy(input_ids=batch["input_ids"], use_cache=False, **context).logits

    def _require_packing(self) -> None:
        """Test once whether the model's attention keeps packed examples apart, which not every architecture does.

        Raises:
            ParleyError: It takes no position ids, attends across the border of examples, or has an adapter that PEFT
                applies to a row as a whole.
        """
        if getattr(self, "_keeps_packed_apart", False):
            return
        base, is_whole = base_model(self.policy), base_is_whole(self.policy)
        takes_positions = "position_ids" in inspect.signature(base.forward).parameters
        if not is_whole or not takes_positions or self._leak() > LEAK_TOLERATED:
            which = "" if is_whole else ", with virtual tokens or aLoRA,"
            raise ParleyError(
                f"a model of type {base.config.model_type}{which} does not keep packed examples apart; "
                "set data.init_args.packing: false."
            )
        self._keeps_packed_apart = True

    @torch.no_grad()
    def _leak(self) -> float:
        """The relative change of a text's logits when packed behind another: 1 if it attends to that text fully."""
        model, training = self.policy, self.policy.training
        first, second = torch.arange(8, device=self.device), torch.arange(8, 14, device=self.device)
        joined = torch.cat([first, second])[None]
        positions = torch.cat([torch.arange(len(first)), torch.arange(len(second))])[None].to(self.device)

        def answer(ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            return logits[0, -len(second) :].float()

        model.eval()
        try:
            with gathered(self), torch.autocast(self.device.type, enabled=False):
                alone = answer(second[None], None, positions[:, -len(second) :])
                packed = answer(joined, None, positions)
                together = answer(joined, torch.ones_like(joined), positions)
        finally:
            model.train(training)
        return float((packed - alone).norm() / (together - alone).norm())
