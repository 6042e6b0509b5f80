"""The base of Modules for supervised fine-tuning."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from src.contracts import IGNORE_INDEX, Batch
from src.internals import shows_progress
from src.models.head import logits_at
from src.models.responses import output_head, same_logits
from src.models.tying import base_model
from src.modules.breakdown import Breakdown
from src.modules.generating import GeneratingModule
from src.modules.supervised.metrics import EvaluationMetrics
from src.modules.token_mean import TokenMean
from src.rl.logprobs import cross_entropy_sum


class SupervisedModule(GeneratingModule):
    """Base of the Modules that learn to answer prompts: `Seq2SeqModule` and `CausalLMModule`.

    Args:
        model_name_or_path: A hub name or a directory that `from_pretrained` takes.
        label_smoothing: Share of the target's probability that is spread over the vocabulary.
        **kwargs: The arguments of every generating Module (`GeneratingModule`).

    Attributes:
        logits_at_once: With more than these, 512 MiB in float32, a loss is computed in slices of tokens.
    """

    logits_at_once = 2**27

    def __init__(
        self,
        model_name_or_path: str,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, **kwargs)
        self.label_smoothing = label_smoothing
        self.evaluation = EvaluationMetrics(self.metrics)
        self._token_mean = TokenMean()
        self._breakdown = Breakdown()
        self._knows_head: bool | None = None  # until `_try_head`

    # Loss

    def check(self, batch: Batch) -> None:
        """Refuse a batch that the model cannot learn from; here there is none."""

    @abstractmethod
    def model_logits(self, batch: Batch) -> Tensor:
        """Run the model over a batch; what its output head gives, (batch, time, vocabulary)."""

    def aligned_labels(self, batch: Batch) -> Tensor:
        """The labels at the positions whose logits predict them, (batch, time); -100 where nothing is learned."""
        return batch["labels"]

    def learned(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Rows and columns of the aligned labels that are to be learned, as the batch says; found if it does not."""
        if "learned" in batch:
            rows, columns = batch["learned"].unbind()
        else:
            rows, columns = torch.nonzero(self.aligned_labels(batch) != IGNORE_INDEX, as_tuple=True)
        return rows, columns

    def loss_sum(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over the tokens to learn from, and their number; smoothed in training only."""
        self.check(batch)
        labels, places = self.aligned_labels(batch), self.learned(batch)
        targets, time = labels[places], labels.shape[1]
        if self._knows_head is None:
            self._knows_head = self._try_head(batch, time)
        vocabulary = base_model(self.policy).config.get_text_config(decoder=True).vocab_size
        rows = max(1, self.logits_at_once // vocabulary)  # of logits, a token each
        in_slices = self._knows_head and len(targets) > rows
        with logits_at(self.policy, *places, time, only_states=in_slices) as states:
            logits = self.model_logits(batch)
        smoothing = self.label_smoothing if self.training else 0.0
        if in_slices:
            head = output_head(self.policy, in_own_precision=True)
            loss = cross_entropy_sum(states[0], targets, head, label_smoothing=smoothing, chunk_size=rows)
        else:
            loss = F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=smoothing)
        return loss, torch.full((), targets.numel(), device=targets.device)

    @torch.no_grad()
    def _try_head(self, batch: Batch, time: int) -> bool:
        """Whether Parley knows what the model does after its output head, so that a loss may be computed in slices.

        Tried on the first batch, which all processes have at once, and on one of its positions.
        """
        model, training = self.policy, self.policy.training
        first = torch.zeros(1, dtype=torch.long, device=self.device)
        model.eval()  # no dropout, and so no random numbers
        try:
            with logits_at(model, first, first, time) as states:
                logits = self.model_logits(batch)
            return same_logits(output_head(model, in_own_precision=True)(states[0]), logits)
        finally:
            model.train(training)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss, so scaled that a step's gradient is of the mean over the tokens of all processes and batches."""
        loss_sum, count = self.loss_sum(batch)
        total = count
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(count.clone(), reduce_op="sum")
        # The strategy averages gradients over processes; this undoes it.
        loss, shown = self._token_mean.add(loss_sum * self.trainer.world_size, total)
        in_bar, together = shows_progress(self.trainer), self.trainer.world_size > 1
        self.log("train/loss", shown, prog_bar=in_bar, sync_dist=together, batch_size=1)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Scale the gradients to those of the step's mean loss, and check that the loss is finite."""
        loss = self._token_mean.settle(self.parameters(), self.trainer.accumulate_grad_batches)
        if loss is not None:
            self._breakdown.note(loss, self.trainer)

    # Evaluation

    def setup(self, stage: str) -> None:
        """Move the metrics to the model's device."""
        super().setup(stage)
        self.evaluation.to(self.trainer.strategy.root_device)

    def _evaluate(self, batch: Batch) -> dict[str, list[str]]:
        loss_sum, count = self.loss_sum(batch)
        predictions = self.generate(batch)
        real = [row for row, is_filler in enumerate(batch["is_filler"]) if not is_filler]
        self.evaluation.update(
            loss_sum,
            count,
            [predictions[row] for row in real],
            [batch["references"][row] for row in real],
            [batch["prompt"][row] for row in real],
        )
        return {"predictions": predictions}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list[str]]:
        """Loss and generated answers; the answers go to the callbacks."""
        return self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, list[str]]:
        """As in validation."""
        return self._evaluate(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, list[str]]:
        """Generated answers."""
        return {"predictions": self.generate(batch)}

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics."""
        self.evaluation.reset()

    def on_test_epoch_start(self) -> None:
        """Reset the metrics."""
        self.evaluation.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole split."""
        self.log_dict(self.evaluation.compute("val"))

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole split."""
        self.log_dict(self.evaluation.compute("test"))
