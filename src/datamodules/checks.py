"""Logs the size of a split, and checks truncation, lengths and characters that the tokenizer loses."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from transformers import PretrainedConfig

from src.datamodules.cache import EncodedDataset
from src.errors import ParleyError
from src.models.texts import visible

log = logging.getLogger(__name__)

LABELS = {"chosen": "chosen answer", "rejected": "rejected answer"}  # for messages
LOSS_TO_WARN_OF, LOSS_TO_REFUSE = 0.01, 0.8  # shares of the characters


def report(part: str, dataset: EncodedDataset, limits: dict[str, int]) -> None:
    """Log the size of a split, and how much of it was truncated.

    Args:
        part: The split.
        dataset: Its tokens.
        limits: The most tokens of a `prompt` and of each kind of answer.
    """
    tokens = sum(sum(dataset.lengths(f"{what}_ids")) for what in limits)
    log.info("%s: %s examples, %s tokens.", part, f"{len(dataset):,}", f"{tokens:,}")
    shortened = [count for count in dataset.rows["turns_dropped"] if count]
    if shortened:
        log.warning(
            "%s: %d of %d talks lost their oldest turns, %d in all, to have %d tokens at most before the answer.",
            part,
            len(shortened),
            len(dataset),
            sum(shortened),
            limits["prompt"],
        )
    for what, limit in limits.items():
        if cut := sum(dataset.rows[f"{what}_truncated"]):
            log.warning(
                "%s: %d of %d %ss truncated to %d tokens.", part, cut, len(dataset), LABELS.get(what, what), limit
            )


def refuse_too_long(
    part: str, dataset: EncodedDataset, answers: Sequence[str], config: PretrainedConfig, *, joined: bool
) -> None:
    """Refuse examples with more tokens than the model has positions; limits above it are allowed.

    Args:
        part: The split.
        dataset: Its tokens.
        answers: The kinds of answers in a row.
        config: The model's configuration.
        joined: Whether the model reads prompt and answer as one sequence.

    Raises:
        ParleyError: There is such an example.
    """
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    prompts = dataset.lengths("prompt_ids")
    pairs = [pair for name in answers for pair in zip(prompts, dataset.lengths(f"{name}_ids"), strict=True)]
    longest = max(map(sum if joined else max, pairs))
    if longest > positions:
        raise ParleyError(
            f"an example of the {part} split has {longest} tokens, but {config.name_or_path or 'the model'} has "
            f"{positions} positions; lower max_source_length or max_target_length."
        )


def refuse_long_limits(limits: dict[str, int], config: PretrainedConfig, *, joined: bool) -> None:
    """Refuse limits beyond a model's positions, where nobody knows how long the longest example is.

    Args:
        limits: Of tokens: of a `prompt`, where there is one, and of each kind of answer.
        config: The model's.
        joined: Whether the model reads prompt and answer as one.

    Raises:
        ParleyError: They allow more tokens than the model has positions.
    """
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    prompt = limits.get("prompt", 0)
    answer = max(limit for what, limit in limits.items() if what != "prompt")
    longest = prompt + answer if joined else max(prompt, answer)
    if longest > positions:
        raise ParleyError(
            f"examples may have up to {longest} tokens, but {config.name_or_path or 'the model'} has {positions} "
            "positions, and streaming learns too late how long they are; lower max_source_length or max_target_length."
        )


def check_survival(part: str, dataset: EncodedDataset, answers: Sequence[str], model: str, *, speaks: bool) -> None:
    """Warn of, or refuse, texts with characters that the tokenizer does not know and so loses.

    Args:
        part: The split.
        dataset: Its tokens.
        answers: The kinds of answers in a row.
        model: The tokenizer's model, for messages.
        speaks: Whether this process logs.

    Raises:
        ParleyError: Nearly all characters of the prompts or of the answers are lost.
    """
    for what in ("prompt", *answers):
        lost = sum(dataset.rows[f"{what}_lost"])
        if not lost:
            continue
        label = LABELS.get(what, what)
        share = lost / sum(len(visible(text)) for text in dataset.rows[what])
        if share >= LOSS_TO_REFUSE:
            raise ParleyError(
                f"{share:.0%} of the characters in the {part} split's {label}s are unknown to the tokenizer of "
                f"{model}: it is for another language; give another model."
            )
        if share >= LOSS_TO_WARN_OF and speaks:
            log.warning(
                "%s: %.1f %% of the characters in the %ss are unknown to the tokenizer of %s and lost.",
                part,
                100 * share,
                label,
                model,
            )


def warn_of_overlap(train: EncodedDataset, validation: EncodedDataset) -> None:
    """Warn of validation prompts that are in the training split too."""
    known = set(train.rows["prompt"])
    both = [
        name for name, prompt in zip(validation.rows["id"], validation.rows["prompt"], strict=True) if prompt in known
    ]
    if both:
        say_overlap(len(both), f"{len(validation)} prompts", f" (first: {both[0]})")


def say_overlap(count: int, of: str, which: str = "") -> None:
    """Warn that validation is trained on.

    Args:
        count: How many.
        of: Of how many of what.
        which: Some of them.
    """
    log.warning(
        "%d of %s of validation are in train too%s; what is measured on them says little. Disjoint parts of one split, "
        "such as train[:90%%] and train[90%%:], share none.",
        count,
        of,
        which,
    )
