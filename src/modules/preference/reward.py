"""A reward model: a sequence classifier with one output, trained on pairs of answers."""

from __future__ import annotations

import inspect
import logging
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from src.contracts import PreferenceBatch
from src.errors import ParleyError
from src.internals import shows_progress
from src.metrics.pairs import PairFigures
from src.models.classifiers import head_in_float32
from src.models.fingerprint import base_record
from src.models.texts_to_classify import Text, check_text, load_classifier_tokenizer
from src.models.tying import base_model
from src.modules.base import ModelModule
from src.modules.breakdown import Breakdown
from src.modules.token_mean import TokenMean
from src.ranges import NOT_NEGATIVE, SHARE, refuse_outside
from src.rl.bradley_terry import bradley_terry_loss

log = logging.getLogger(__name__)
RANGES = {"label_smoothing": SHARE, "center_rewards_coefficient": NOT_NEGATIVE}


class RewardModule(ModelModule):
    """Trains a reward model by the Bradley-Terry loss, whole or with an adapter: `AutoModelForSequenceClassification`.

    The base may be any for which transformers has a classifier: encoders such as BERT, decoder-only models, T5 and
    BART. A language model gets a new random head, a reward model keeps its own. With an adapter the head is trained in
    full. The head computes in float32, whatever the precision of the rest.

    Args:
        model_name_or_path: A hub name, a model directory, or the directory of a reward model's adapter, which is then
            trained further.
        text: The model's input: prompt, a space and the answer, or the answer alone; set the same for
            `ClassifierReward`.
        label_smoothing: The assumed probability that a pair's labels are swapped, from 0 to below 1. It is used in
            training only, not in validation's loss.
        center_rewards_coefficient: Weight of the square of the two rewards' sum, which keeps rewards around 0; not used
            in validation's loss either.
        dropout: Every dropout probability of the model; null for its own configuration's. Both answers of a pair
            should go through the same model.
        **kwargs: The arguments of every Module (`ModelModule`).
    """

    reads: Literal["texts"] = "texts"
    outputs: ClassVar[int | None] = 1

    def __init__(
        self,
        model_name_or_path: str,
        text: Text = "prompt_and_response",
        label_smoothing: float = 0.0,
        center_rewards_coefficient: float = 0.0,
        dropout: float | None = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, dropout=dropout, **kwargs)
        check_text(text)
        self.text = text
        self.label_smoothing = label_smoothing
        self.center_rewards_coefficient = center_rewards_coefficient
        refuse_outside(self, RANGES)
        self.figures = PairFigures()
        self._mean = TokenMean()
        self._breakdown = Breakdown()
        self._seen: Tensor | None = None  # sums over this optimiser step: pairs, correctly ordered pairs, margins

    # Set-up

    def configure_model(self) -> None:
        """Load the model and set its padding token; a second call does nothing."""
        if self.model is not None:
            return
        super().configure_model()
        base = base_model(self.policy)
        if fresh := base_record(base).fresh:
            log.info("%s has no reward head: %s is fresh.", self.model_name_or_path, ", ".join(fresh))
        base.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        takes_cache = "use_cache" in inspect.signature(base.forward).parameters
        self._options: dict[str, Any] = {"use_cache": False} if takes_cache else {}

    def load_tokenizer(self, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
        """Load the tokenizer with the settings that `ClassifierReward` uses."""
        return load_classifier_tokenizer(
            self.model_name_or_path, config, self.gguf_file, trust_remote_code=self.trust_remote_code
        )

    def _check_architecture(self, config: PreTrainedConfig) -> None:
        self.is_encoder_decoder = bool(config.is_encoder_decoder)

    def setup(self, stage: str) -> None:
        """Move the metrics to the model's device."""
        self.figures.to(self.trainer.strategy.root_device)

    # Loss

    def rewards(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """The rewards of the chosen and of the rejected answers: (batch,) each, float32."""
        if "answer_ids" not in batch:
            raise ParleyError(
                "RewardModule learns from pairs of answers; give PreferenceDataModule, or another Module for this data."
            )
        with head_in_float32(self.policy):
            logits = self.policy(
                input_ids=batch["answer_ids"], attention_mask=batch["answer_mask"], **self._options
            ).logits
        chosen, rejected = logits.squeeze(-1).float().chunk(2)
        return chosen, rejected

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """The loss, so scaled that a step's gradient is of the mean over the pairs of all processes and batches."""
        chosen, rejected = self.rewards(batch)
        losses = bradley_terry_loss(
            chosen,
            rejected,
            batch["margin"],
            label_smoothing=self.label_smoothing,
            center_coefficient=self.center_rewards_coefficient,
        )
        real = ~torch.tensor(batch["is_filler"]).to(losses.device, non_blocking=self.device.type == "cuda")
        with torch.no_grad():
            margins = torch.where(real, chosen - rejected, 0.0)
            seen = torch.stack([real.sum(), ((chosen > rejected) & real).sum(), margins.sum()])
        if self.trainer.world_size > 1:
            seen = self.trainer.strategy.reduce(seen, reduce_op="sum")
        # The strategy averages gradients over processes; this undoes it.
        loss_sum = torch.where(real, losses, 0.0).sum() * self.trainer.world_size
        loss, shown = self._mean.add(loss_sum, seen[0])
        self._seen = seen if self._seen is None else self._seen + seen
        in_bar, together = shows_progress(self.trainer), self.trainer.world_size > 1
        self.log("train/loss", shown, prog_bar=in_bar, sync_dist=together, batch_size=1)
        pairs, right, margin = self._seen.unbind()
        self.log_dict({"train/accuracy": right / pairs, "train/margin": margin / pairs}, batch_size=1)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Scale the gradients to those of the step's mean loss, and check that the loss is finite."""
        self._seen = None
        loss = self._mean.settle(self.parameters(), self.trainer.accumulate_grad_batches)
        if loss is not None:
            self._breakdown.note(loss, self.trainer)

    def tokens(self, batch: PreferenceBatch) -> Tensor:
        """Tokens that the last training step read, padding left out."""
        return batch["answer_mask"].sum()

    # Evaluation

    def _evaluate(self, batch: PreferenceBatch) -> dict[str, list[float]]:
        chosen, rejected = self.rewards(batch)
        losses = bradley_terry_loss(chosen, rejected, batch["margin"])
        real = [row for row, is_filler in enumerate(batch["is_filler"]) if not is_filler]
        self.figures.update([batch["index"][row] for row in real], chosen[real], rejected[real], losses[real])
        return {"chosen_rewards": chosen.tolist(), "rejected_rewards": rejected.tolist()}

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, list[float]]:
        """Both rewards of each pair, for the metrics and the callbacks."""
        return self._evaluate(batch)

    def test_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, list[float]]:
        """As in validation."""
        return self._evaluate(batch)

    def predict_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, list[float]]:
        """Both rewards of each pair."""
        chosen, rejected = self.rewards(batch)
        return {"chosen_rewards": chosen.tolist(), "rejected_rewards": rejected.tolist()}

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics."""
        self.figures.reset()

    def on_test_epoch_start(self) -> None:
        """Reset the metrics."""
        self.figures.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole split."""
        self.log_dict({f"val/{name}": figure for name, figure in self.figures.compute().items()})

    def on_test_epoch_end(self) -> None:
        """Log the figures of the whole split."""
        self.log_dict({f"test/{name}": figure for name, figure in self.figures.compute().items()})
