"""Policy beside reference on the same prompts: what validation of PPO measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.contracts import Batch
from src.metrics.rouge import TokenizerName
from src.metrics.rouge_scorer import ExampleScorer
from src.metrics.toxicity import Toxicity, percent_improvement
from src.models.endings import answer_mask, decode_answers, ending_ids
from src.models.generation import GenerationOptions, generate_ids, until_stop
from src.models.logits import Recorder, truncation
from src.models.reference import Reference
from src.models.responses import Model, output_head, response_states
from src.rewards import ProfanityReward, Reward, WeightedSum, score_responses
from src.rl.drawable import Drawable
from src.rl.kl import sequence_kl
from src.rl.logprobs import kl_from_hidden


@dataclass(frozen=True)
class Comparison:
    """One prompt with the answers of reference (before) and policy (after).

    Attributes:
        index: The row in its split.
        query: The prompt.
        response_before: The reference's answer.
        response_after: The policy's.
        reward_before: The reference's reward.
        reward_after: The policy's.
        toxicity_before: From 0 to 1; None where it is not measured.
        toxicity_after: The same.
        rouge_before: ROUGE of the reference's answer, by name.
        rouge_after: ROUGE of the policy's.
        kl: Of the policy from the reference, over what could be drawn at each token of the policy's answer and summed
            over the answer, in nats.
    """

    index: int
    query: str
    response_before: str
    response_after: str
    reward_before: float
    reward_after: float
    toxicity_before: float | None = None
    toxicity_after: float | None = None
    rouge_before: dict[str, float] = field(default_factory=dict)
    rouge_after: dict[str, float] = field(default_factory=dict)
    kl: float = 0.0

    @property
    def reward_diff(self) -> float:
        """By how much the reward rose."""
        return self.reward_after - self.reward_before


class Evaluator:
    """Compares the answers of policy and reference.

    The reference's answers do not change, so they are generated once for each prompt.

    Args:
        reward: Scores answers.
        toxicity: Measures them too; when left out, alt-profanity-check does where that is (part of) the reward.
        rouge_tokenizer: How ROUGE splits text into words.
    """

    def __init__(self, reward: Reward, toxicity: Toxicity | None, rouge_tokenizer: TokenizerName) -> None:
        self.reward = reward
        if toxicity is None and _uses_profanity(reward):
            toxicity = Toxicity()
        self.toxicity = toxicity
        self._rouge = ExampleScorer(tokenizer=rouge_tokenizer)
        self._before: dict[tuple[int, str], str] = {}

    def prepare(self, device: torch.device) -> None:
        """Load what measures, so that what it lacks shows at once.

        Args:
            device: Where it is to compute.
        """
        if self.toxicity is not None:
            self.toxicity.to(device).scores([])

    def compare(
        self,
        batch: Batch,
        model: Model,
        reference: Reference,
        tokenizer: PreTrainedTokenizerBase,
        options: GenerationOptions,
        encoder_hidden: Tensor | None,
        seed: int,
    ) -> list[Comparison]:
        """Answer a batch's prompts twice and measure; fillers are left out.

        Args:
            batch: The prompts.
            model: The policy.
            reference: Its reference.
            tokenizer: Theirs.
            options: How to decode.
            encoder_hidden: The encoder's output, where policy and reference share it.
            seed: Of sampling, the same for both.
        """
        rows = [row for row, is_filler in enumerate(batch["is_filler"]) if not is_filler]
        seed += batch["index"][0]
        endings, recorder = ending_ids(tokenizer, model), Recorder()
        ids = _generate(model, tokenizer, batch, options, seed, recorder)
        keys = [(batch["index"][row], batch["prompt"][row]) for row in range(len(batch["prompt"]))]
        with reference.active(model) as frozen:
            if any(key not in self._before for key in keys):
                before_ids = _generate(frozen, tokenizer, batch, options, seed)
                self._before |= zip(keys, _texts(tokenizer, before_ids, endings, options), strict=True)
        kl = _kl(model, reference, tokenizer, batch, ids, recorder.drawable, options, encoder_hidden)
        queries = [batch["prompt"][row] for row in rows]
        references = [batch["references"][row] for row in rows]
        texts = _texts(tokenizer, ids, endings, options)
        after = [texts[row] for row in rows]
        before = [self._before[keys[row]] for row in rows]
        rewards = score_responses(self.reward, queries * 2, before + after, references * 2).tolist()
        toxicities: Sequence[float | None] = [None] * len(rewards)
        if self.toxicity is not None:
            toxicities = self.toxicity.of_answers(queries * 2, before + after)
        return [
            Comparison(
                index=batch["index"][row],
                query=queries[place],
                response_before=before[place],
                response_after=after[place],
                reward_before=rewards[place],
                reward_after=rewards[len(rows) + place],
                toxicity_before=toxicities[place],
                toxicity_after=toxicities[len(rows) + place],
                rouge_before=self._rouge(before[place], references[place]),
                rouge_after=self._rouge(after[place], references[place]),
                kl=kl[row],
            )
            for place, row in enumerate(rows)
        ]


def _uses_profanity(reward: Reward) -> bool:
    if isinstance(reward, WeightedSum):
        return any(map(_uses_profanity, reward.rewards))
    return isinstance(reward, ProfanityReward)


def _generate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    batch: Batch,
    options: GenerationOptions,
    seed: int,
    recorder: Recorder | None = None,
) -> Tensor:
    prompt_ids = batch["prompt_ids"]
    torch.clear_autocast_cache()
    with torch.random.fork_rng(devices=[prompt_ids.device] if prompt_ids.is_cuda else []):
        torch.manual_seed(seed % 2**63)
        ids = generate_ids(model, tokenizer, prompt_ids, batch["prompt_attention_mask"], options, recorder=recorder)
    torch.clear_autocast_cache()
    return ids


def _texts(
    tokenizer: PreTrainedTokenizerBase, ids: Tensor, endings: list[int], options: GenerationOptions
) -> list[str]:
    texts = decode_answers(tokenizer, ids, endings)
    return [until_stop(text, options.stop_strings).strip() for text in texts]


@torch.no_grad()
def _kl(
    model: Model,
    reference: Reference,
    tokenizer: PreTrainedTokenizerBase,
    batch: Batch,
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


def summarise(rows: Sequence[Comparison], stage: str) -> dict[str, float]:
    """Figures of a whole split, those of the reference under `…_reference`.

    Args:
        rows: The comparisons, in the split's order.
        stage: Comes before each name: `val/reward`, `val/reward_reference`, `val/toxicity_mean` …
    """
    if not rows:
        return {}
    figures = {"kl": _mean([row.kl for row in rows])}
    for suffix, time in (("", "after"), ("_reference", "before")):
        figures[f"reward{suffix}"] = _mean([getattr(row, f"reward_{time}") for row in rows])
        for name in rows[0].rouge_after:
            figures[f"{name}{suffix}"] = _mean([getattr(row, f"rouge_{time}")[name] for row in rows])
    before = [row.toxicity_before for row in rows if row.toxicity_before is not None]
    after = [row.toxicity_after for row in rows if row.toxicity_after is not None]
    if before and after:
        improvement = percent_improvement(before, after)
        for name, change in (("toxicity_mean", improvement.mean), ("toxicity_std", improvement.std)):
            fall = name.replace("_mean", "") + "_improvement"
            figures |= {name: change.after, f"{name}_reference": change.before}
            figures |= {fall: change.percent, f"{fall}_low": change.low, f"{fall}_high": change.high}
    return {f"{stage}/{name}": float(figure) for name, figure in figures.items()}


def _mean(figures: Sequence[float]) -> float:
    return sum(figures) / len(figures)
