"""Makes preference pairs of a model's own answers: per prompt, those with the highest and the lowest reward."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.contracts import Example
from src.rewards import Reward, score_responses
from src.writing import whole_file


@dataclass(frozen=True)
class ScoredPair:
    """The best and the worst answer to a prompt.

    Attributes:
        example: The prompt.
        chosen: The best answer.
        rejected: The worst.
        score_chosen: The reward of the best answer.
        score_rejected: The reward of the worst answer.
    """

    example: Example
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float


@dataclass(frozen=True)
class Chosen:
    """The pairs of a set of prompts, and how many prompts gave none.

    Attributes:
        pairs: In the order of the prompts.
        ties: Prompts whose best and worst answer have (nearly) the same score, or the same text.
        unusable: Prompts with fewer than two answers that are not empty and have a score.
        mean_score: The mean score of all answers with a finite one.
    """

    pairs: list[ScoredPair]
    ties: int
    unusable: int
    mean_score: float


def unique_prompts(examples: Sequence[Example]) -> list[Example]:
    """The examples with repeated prompts merged; the merged one has all their references."""
    by_prompt: dict[str, Example] = {}
    for example in examples:
        known = by_prompt.get(example.prompt)
        if known is None:
            by_prompt[example.prompt] = example
            continue
        references = list(dict.fromkeys([*known.references, *example.references]))
        by_prompt[example.prompt] = Example(known.prompt, known.target, references, known.id, known.turns)
    return list(by_prompt.values())


def score_answers(
    reward: Reward,
    examples: Sequence[Example],
    answers: Sequence[Sequence[str]],
    batch_size: int,
    track: Callable[[Sequence[range]], Iterable[range]] = iter,
) -> list[list[float]]:
    """Score every answer.

    Args:
        reward: The reward.
        examples: The prompts.
        answers: The answers to each prompt, equally many for all.
        batch_size: Prompts at a time.
        track: Wraps the iteration over batches, for instance in a progress bar.

    Returns:
        The scores of each prompt's answers.

    Raises:
        ParleyError: The reward needs references that are not there, or fails.
    """
    each = len(answers[0])
    batches = [range(start, min(start + batch_size, len(answers))) for start in range(0, len(answers), batch_size)]
    scores: list[list[float]] = []
    for batch in track(batches):
        prompts = [examples[number].prompt for number in batch for _ in range(each)]
        references = [examples[number].references for number in batch for _ in range(each)]
        texts = [text for number in batch for text in answers[number]]
        given = references if all(references) else None
        flat = score_responses(reward, prompts, texts, given).tolist()
        scores += [flat[start : start + each] for start in range(0, len(flat), each)]
    return scores


def choose_pairs(
    examples: Sequence[Example],
    answers: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float]],
    min_difference: float = 0.0,
) -> Chosen:
    """Pair the best with the worst answer of each prompt; of equally good ones the first is taken.

    Args:
        examples: The prompts.
        answers: The answers to each prompt.
        scores: The score of each answer; answers whose score is not finite are left out.
        min_difference: The least difference of the two scores; pairs below it are ties.
    """
    pairs, ties, unusable = [], 0, 0
    finite = [score for row in scores for score in row if math.isfinite(score)]
    for example, texts, given in zip(examples, answers, scores, strict=True):
        usable = [
            (score, text) for text, score in zip(texts, given, strict=True) if text.strip() and math.isfinite(score)
        ]
        if len(usable) < 2:
            unusable += 1
            continue
        best, worst = max(usable, key=lambda pair: pair[0]), min(usable, key=lambda pair: pair[0])
        difference = best[0] - worst[0]
        if difference == 0 or difference < min_difference or best[1].strip() == worst[1].strip():
            ties += 1
            continue
        pairs.append(ScoredPair(example, best[1], worst[1], best[0], worst[0]))
    return Chosen(pairs, ties, unusable, math.fsum(finite) / len(finite) if finite else math.nan)


def write_pairs(path: Path, pairs: Sequence[ScoredPair], *, margins: bool) -> None:
    """Write pairs as JSON lines that `PreferenceDataModule` and TRL's trainers read.

    Args:
        path: The file.
        pairs: The pairs.
        margins: Add the difference of the scores as `margin`, which a reward model's loss then uses.

    Raises:
        ParleyError: The file cannot be written.
    """
    with whole_file(path, parents=False) as file:
        for pair in pairs:
            row: dict[str, Any] = {
                "id": pair.example.id,
                "prompt": pair.example.prompt,
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "score_chosen": pair.score_chosen,
                "score_rejected": pair.score_rejected,
            }
            if margins:
                row["margin"] = pair.score_chosen - pair.score_rejected
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
