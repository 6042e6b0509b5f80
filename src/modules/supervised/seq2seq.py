"""Fine-tuning an encoder-decoder."""

from __future__ import annotations

from torch import Tensor

from src.contracts import Batch
from src.modules.supervised.base import SupervisedModule


class Seq2SeqModule(SupervisedModule):
    """Fine-tunes an encoder-decoder, whole or with an adapter: T5, FLAN-T5, mT5, BART and what else transformers has.

    The arguments are those of `SupervisedModule`.
    """

    is_encoder_decoder = True

    def model_logits(self, batch: Batch) -> Tensor:
        """The decoder's logits along the target."""
        start = self.policy.prepare_decoder_input_ids_from_labels(labels=batch["labels"])  # type: ignore[operator]
        return self.policy(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=start,
            use_cache=False,
        ).logits
