"""Fine-tuning an encoder-decoder."""

from __future__ import annotations

from torch import Tensor

from src.contracts import IGNORE_INDEX, Batch
from src.models.head import logits_at
from src.modules.base import DialogueModule


class Seq2SeqModule(DialogueModule):
    """Fine-tunes an encoder-decoder, whole or with an adapter: T5, FLAN-T5, mT5, BART and what else transformers has.

    The arguments are those of `DialogueModule`.
    """

    is_encoder_decoder = True

    def token_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of the target's tokens, padding left out."""
        labels = batch["labels"]
        wanted = labels != IGNORE_INDEX
        with logits_at(self._model, wanted):
            logits = self._model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                decoder_input_ids=self._model.prepare_decoder_input_ids_from_labels(labels=labels),  # type: ignore[operator]
                use_cache=False,
            ).logits
        return logits, labels[wanted]
