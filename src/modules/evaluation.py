"""Compares policy and reference on the same prompts: the answers before and after training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from transformers import PreTrainedTokenizerBase

from src.contracts import Batch, PreferenceBatch
from src.metrics.answers import Answer, AnswerMetric, plain, update_all
from src.models.endings import answer_mask, decode_answers, ending_ids
from src.models.generation import generate_ids, until_stop
from src.models.generation_options import GenerationOptions
from src.models.logits import Recorder, truncation
from src.models.reference import Reference
from src.models.responses import Model, output_head, response_states
from src.rewards import Reward, score_responses
from src.rl.drawable import Drawable
from src.rl.kl import sequence_kl
from src.rl.logprobs import kl_from_hidden

AnswerKey = tuple[int, str]
"""Identifies an answer: the prompt's row in its split, and the prompt."""


@dataclass(frozen=True)
class Comparison:
    """One prompt with the answers of reference (before) and policy (after).

    Attributes:
        index: The row in its split.
        query: The prompt.
        response_before: The reference's answer.
        response_after: The policy's answer.
        reward_before: The reference's reward; None where there is no reward.
        reward_after: The policy's reward.
        before: The reference's figures, by name, of all metrics that give figures for each answer.
        after: The policy's figures of these metrics.
        kl: KL divergence of the policy from the reference, exact over the tokens that could be drawn at each position
            and summed over the policy's answer, in nats; None if the reference's weights are not in memory.
    """

    index: int
    query: str
    response_before: str
    response_after: str
    reward_before: float | None
    reward_after: float | None
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    kl: float | None = 0.0

    @property
    def reward_diff(self) -> float | None:
        """By how much the reward rose; None without a reward."""
        if self.reward_after is None or self.reward_before is None:
            return None
        return self.reward_after - self.reward_before


class Evaluator:
    """Compares the answers of policy and reference.

    The reference's answers do not change, so they are generated once for each prompt. This is not a torch module, so
    that a metric's classifier is neither trained nor saved in checkpoints.

    Args:
        reward: Scores answers; None for no scores.
        metrics: Metrics of answers, by name.

    Attributes:
        before: The reference's answers so far.
    """

    def __init__(self, reward: Reward | None, metrics: Mapping[str, Metric]) -> None:
        self.reward = reward
        self.of_each = [metric for metric in metrics.values() if isinstance(metric, AnswerMetric)]
        of_splits: dict[str, Metric | MetricCollection] = {
            name: metric for name, metric in metrics.items() if not isinstance(metric, AnswerMetric)
        }
        self.of_policy = MetricCollection(of_splits, compute_groups=False)
        self.of_reference = self.of_policy.clone()
        self.before: dict[AnswerKey, str] = {}

    def to(self, device: torch.device) -> None:
        """Move the metrics to a device."""
        for metric in (*self.of_each, self.of_policy, self.of_reference):
            metric.to(device)

    def reset(self) -> None:
        """Reset the metrics, at the start of a split."""
        self.of_policy.reset()
        self.of_reference.reset()

    def answer_before(
        self,
        batch: Batch | PreferenceBatch,
        reference: Model,
        tokenizer: PreTrainedTokenizerBase,
        options: GenerationOptions,
        seed: int,
    ) -> None:
        """Generate the reference's answers to those of a batch's prompts that it has not answered yet.

        Args:
            batch: The prompts.
            reference: The model as it is when training starts.
            tokenizer: Its tokenizer.
            options: How to decode.
            seed: The seed of sampling.
        """
        keys = keys_of(batch)
        if any(key not in self.before for key in keys):
            ids = _generate(reference, tokenizer, batch, options, seed)
            self.before |= zip(keys, _texts(tokenizer, reference, ids, options), strict=True)

    def compare(
        self,
        batch: Batch | PreferenceBatch,
        model: Model,
        reference: Reference | None,
        tokenizer: PreTrainedTokenizerBase,
        options: GenerationOptions,
        encoder_hidden: Tensor | None,
        seed: int,
    ) -> list[Comparison]:
        """Generate and measure both models' answers to a batch's prompts; fillers are left out.

        Args:
            batch: The prompts.
            model: The policy.
            reference: Its reference; None if its answers are in `before` already, and then KL is left out.
            tokenizer: The tokenizer of both.
            options: How to decode.
            encoder_hidden: The encoder's output, if policy and reference share it; computed when None.
            seed: The seed of sampling, the same for both.
        """
        rows = [row for row, is_filler in enumerate(batch["is_filler"]) if not is_filler]
        recorder = Recorder()
        ids = _generate(model, tokenizer, batch, options, seed, recorder)
        kl: Sequence[float | None] = [None] * len(ids)
        if reference is not None:
            with reference.active(model) as frozen:
                self.answer_before(batch, frozen, tokenizer, options, seed)
            kl = _kl(model, reference, tokenizer, batch, ids, recorder.drawable, options, encoder_hidden)
        keys = keys_of(batch)
        queries = [batch["prompt"][row] for row in rows]
        references = [batch["references"][row] for row in rows]
        texts = _texts(tokenizer, model, ids, options)
        after = [texts[row] for row in rows]
        before = [self.before[keys[row]] for row in rows]
        rewards: list[float | None] = [None] * (2 * len(rows))
        if self.reward is not None:
            rewards = score_responses(self.reward, queries * 2, before + after, references * 2).tolist()
        update_all(self.of_policy, after, references, queries)
        update_all(self.of_reference, before, references, queries)
        answers = [Answer(*given) for given in zip(before + after, references * 2, queries * 2, strict=True)]
        figures: list[dict[str, float]] = [{} for _ in answers]
        for metric in self.of_each:
            measured = metric.measure(answers)
            figures = [known | new for known, new in zip(figures, measured, strict=True)]
        return [
            Comparison(
                index=batch["index"][row],
                query=queries[place],
                response_before=before[place],
                response_after=after[place],
                reward_before=rewards[place],
                reward_after=rewards[len(rows) + place],
                before=figures[place],
                after=figures[len(rows) + place],
                kl=kl[row],
            )
            for place, row in enumerate(rows)
        ]

    def summarise(self, rows: Sequence[Comparison], stage: str) -> dict[str, float]:
        """Figures of a whole split, those of the reference under `…_reference`; every process must call this.

        Args:
            rows: The comparisons of all processes, in the split's order.
            stage: The prefix of each name: `val/reward`, `val/reward_reference`, `val/toxicity_mean` …
        """
        figures = plain(self.of_policy.compute())
        figures |= {f"{name}_reference": value for name, value in plain(self.of_reference.compute()).items()}
        if not rows:
            return {}
        for name, found in {
            "kl": [row.kl for row in rows],
            "reward": [row.reward_after for row in rows],
            "reward_reference": [row.reward_before for row in rows],
        }.items():
            known = [figure for figure in found if figure is not None]
            if known:
                figures[name] = _mean(known)
        for metric in self.of_each:
            before = {name: [row.before[name] for row in rows] for name in metric.names}
            after = {name: [row.after[name] for row in rows] for name in metric.names}
            figures |= metric.summarise(after) | metric.compare(before, after)
            figures |= {f"{name}_reference": value for name, value in metric.summarise(before).items()}
        return {f"{stage}/{name}": figure for name, figure in figures.items()}


def keys_of(batch: Batch | PreferenceBatch) -> list[AnswerKey]:
    """The keys under which the answers to a batch's prompts are stored."""
    return list(zip(batch["index"], batch["prompt"], strict=True))


def _generate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    batch: Batch | PreferenceBatch,
    options: GenerationOptions,
    seed: int,
    recorder: Recorder | None = None,
) -> Tensor:
    prompt_ids, seed = batch["prompt_ids"], seed + batch["index"][0]
    torch.clear_autocast_cache()
    with torch.random.fork_rng(devices=[prompt_ids.device] if prompt_ids.is_cuda else []):
        torch.manual_seed(seed % 2**63)
        ids = generate_ids(model, tokenizer, prompt_ids, batch["prompt_attention_mask"], options, recorder=recorder)
    torch.clear_autocast_cache()
    return ids


def _texts(tokenizer: PreTrainedTokenizerBase, model: Model, ids: Tensor, options: GenerationOptions) -> list[str]:
    texts = decode_answers(tokenizer, ids, ending_ids(tokenizer, model))
    return [until_stop(text, options.stop_strings).strip() for text in texts]


@torch.no_grad()
def _kl(
    model: Model,
    reference: Reference,
    tokenizer: PreTrainedTokenizerBase,
    batch: Batch | PreferenceBatch,
    ids: Tensor,
    drawable: Drawable,
    options: GenerationOptions,
    encoder_hidden: Tensor | None,
) -> list[float]:
    """KL along each answer of the policy."""
    mask = answer_mask(ids, ending_ids(tokenizer, model), tokenizer, options.stop_strings).bool()
    given = (batch["prompt_ids"], batch["prompt_attention_mask"], ids, mask.long(), encoder_hidden)

    def of_reference(function: Callable[[Model], Tensor]) -> Tensor:
        with reference.active(model) as frozen:
            torch.clear_autocast_cache()
            found = function(frozen)
        torch.clear_autocast_cache()
        return found

    kl = kl_from_hidden(
        response_states(model, *given).head_input,
        of_reference(lambda frozen: response_states(frozen, *given).head_input),
        mask,
        output_head(model),
        lambda hidden: of_reference(lambda frozen: output_head(frozen)(hidden)),
        drawable=drawable,
        temperature=options.temperature if options.do_sample else 1.0,
        truncate=truncation(options.top_k, options.top_p) if options.do_sample else None,
    )
    return sequence_kl(kl, mask).tolist()


def gather(rows: list[Comparison], trainer: Trainer) -> list[Comparison]:
    """The comparisons of all processes in the split's order; every process must call this."""
    if trainer.world_size > 1:
        gathered: list[list[Comparison]] = [[] for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(gathered, rows)
        rows = [row for part in gathered for row in part]
    return sorted(rows, key=lambda row: row.index)


def _mean(figures: Sequence[float]) -> float:
    return math.fsum(figures) / len(figures)
