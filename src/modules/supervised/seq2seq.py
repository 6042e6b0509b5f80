"""Fine-tuning an encoder-decoder."""

from __future__ import annotations

from torch import Tensor

from src.contracts import Batch
from src.models.head import logits_at
from src.modules.supervised.base import SupervisedModule


class Seq2SeqModule(SupervisedModule):
    """Fine-tunes an encoder-decoder, whole or with an adapter: T5, FLAN-T5, mT5, BART and what else transformers has.

    The arguments are those of `SupervisedModule`.
    """

    is_encoder_decoder = True

    def token_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of the target's tokens, padding left out."""
        labels = batch["labels"]
        learned = self.learned(batch)
        with logits_at(self.policy, *learned, labels.shape[1]):
            logits = self.policy(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                decoder_input_ids=self.policy.prepare_decoder_input_ids_from_labels(labels=labels),  # type: ignore[operator]
                use_cache=False,
            ).logits
        return logits, labels[learned]
