"""What validation and test measure."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchmetrics import MeanMetric

from src.metrics.rouge import Rouge, TokenizerName


class EvaluationMetrics(nn.Module):
    """Loss and perplexity by token and ROUGE by example, over a whole split and all processes.

    Args:
        rouge_tokenizer: How ROUGE splits text into words.
    """

    def __init__(self, rouge_tokenizer: TokenizerName) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.rouge = Rouge(tokenizer=rouge_tokenizer)

    def update(
        self, loss_sum: Tensor, count: Tensor, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> None:
        """Add a batch.

        Args:
            loss_sum: Cross-entropy summed over the batch's tokens.
            count: How many tokens those are; 0 for a batch of fillers.
            predictions: Generated answers, fillers left out.
            references: The right answers to each.
        """
        if count:
            self.loss.update(loss_sum / count, weight=count)
        self.rouge.update(predictions, references)

    def compute(self, stage: str) -> dict[str, Tensor | float]:
        """The figures under a stage's name, `val/loss`, `val/perplexity`, `val/rouge1` and so on; starts anew.

        Perplexity is the exponential of the mean loss of a token: how many tokens the model hesitates between.
        """
        loss = self.loss.compute()
        metrics: dict[str, Tensor | float] = {f"{stage}/loss": loss, f"{stage}/perplexity": loss.exp()}
        metrics |= {f"{stage}/{key}": value for key, value in self.rouge.compute().items()}
        self.loss.reset()
        self.rouge.reset()
        return metrics
