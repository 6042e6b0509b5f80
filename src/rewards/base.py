"""The base class of rewards, and the call that checks their scores."""

from __future__ import annotations

import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from src.errors import ParleyError


class Reward(ABC):
    """Scores responses; online methods train the policy towards higher scores.

    Your own reward is a subclass with `__call__`, named in YAML by `class_path`; the arguments of its `__init__` are
    set there too, so they need type hints. See docs/rewards.md.

    Attributes:
        needs_references: Whether `__call__` takes a third argument, `references: list[list[str]]`, the reference texts
            of each response.
    """

    needs_references: bool = False

    @abstractmethod
    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        """Score each response.

        Args:
            prompts: What the model was given.
            responses: What it answered, special tokens removed; may be empty strings.

        Returns:
            Shape (batch,).
        """

    def to(self, device: torch.device | str) -> Reward:  # noqa: ARG002
        """Move the reward to a device; without a model there is nothing to move.

        Args:
            device: The device to compute on.

        Returns:
            Itself.
        """
        return self


@contextmanager
def full_precision() -> Iterator[None]:
    """Within the block compute and create tensors in float32, without the autocast of the surrounding training.

    In bfloat16 scores near 3.5 have steps of 0.016, more than many answers differ by.
    """
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_default_dtype, default)
        yield


def score_responses(
    reward: Reward,
    prompts: Sequence[str],
    responses: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
) -> Tensor:
    """Call a reward in float32, with references if it needs them, and check its result.

    Args:
        reward: The reward.
        prompts: What the model was given.
        responses: What it answered, one for each prompt.
        references: The reference texts of each response; needed by some rewards only.

    Returns:
        Shape (batch,), float32; scores may be NaN or infinite, which the caller must handle.

    Raises:
        ParleyError: The reward needs references that are not there, raises, or its scores cannot be used.
    """
    texts: list[Any] = [list(prompts), list(responses)]
    if reward.needs_references:
        if references is None or not all(references):
            raise ParleyError(
                f"{type(reward).__name__} compares with references and this data has none for some prompt; "
                "choose a reward without references, or data with them."
            )
        texts.append([list(each) for each in references])
    name = type(reward).__name__
    with torch.no_grad(), full_precision():
        try:
            scores = reward(*texts)
        except (ParleyError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if not texts[1]:  # an empty batch is the caller's fault, not the reward's
                raise
            raise ParleyError(_what_failed(reward, texts, name, error)) from error
        return check_scores(scores, len(texts[1]), name)


def _what_failed(reward: Reward, texts: list[Any], name: str, error: Exception) -> str:
    """An error message that names the response on which the reward fails, found by scoring each alone."""
    where = f"{len(texts[1])} responses together"
    for row, response in enumerate(texts[1]):
        try:
            reward(*([column[row]] for column in texts))
        except Exception as alone:
            where, error = f"the response {textwrap.shorten(response, 80)!r}", alone
            break
    return f"{name} failed on {where}: {type(error).__name__}: {error}; mend the reward (--debug shows where)."


def check_scores(scores: Any, batch: int, name: str = "the reward") -> Tensor:
    """Check a reward's result and convert it to a float32 tensor.

    Args:
        scores: A tensor of shape (batch,), or as many numbers in a list, tuple or array.
        batch: How many responses were scored.
        name: The reward's name, for error messages.

    Returns:
        Shape (batch,), float32, detached, on the device of `scores`. NaN and infinity pass.

    Raises:
        ParleyError: The result has another type or shape.
    """
    wanted = f"return one number for each response, a tensor of shape ({batch},)"
    if not isinstance(scores, Tensor):
        try:
            scores = torch.as_tensor(scores, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            kind = type(scores).__name__
            raise ParleyError(f"{name} returned a {kind} that does not hold plain numbers; {wanted}.") from None
    if scores.dim() == 1 and len(scores) != batch:
        raise ParleyError(f"{name} returned {len(scores)} scores for {batch} responses; {wanted}.")
    if scores.shape != (batch,):
        raise ParleyError(f"{name} returned scores of the shape {tuple(scores.shape)}; {wanted}.")
    if scores.is_complex():
        raise ParleyError(f"{name} returned complex numbers; {wanted}.")
    return scores.detach().float()
