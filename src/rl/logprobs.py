"""Log-probabilities and entropy of tokens, computed in slices to avoid a (batch, time, vocabulary) float32 tensor.

TRL's `selective_log_softmax_and_entropy` does the arithmetic. In trl 1.16 it returns the dtype of the logits, and half
precision is too coarse for PPO's ratios, so each slice is passed as float32; and it loops over the first dimension, so
each slice is passed as (1, tokens, vocabulary).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from trl.trainer.utils import selective_log_softmax_and_entropy

from src.rl.drawable import Drawable

Head = Callable[[Tensor], Tensor]
"""Maps hidden states (tokens, hidden) to logits (tokens, vocabulary); must be deterministic, as it may run twice."""

CHUNK_SIZE = 512
"""Tokens in a slice: 64 MiB of float32 logits at T5's vocabulary."""


class TokenScores(NamedTuple):
    """Scores of the labels, each of shape (batch, time), float32, 0 where the label is negative.

    Attributes:
        logprobs: The labels' log-probabilities, in nats.
        entropy: The entropy of the distribution at that position, in nats.
    """

    logprobs: Tensor
    entropy: Tensor


def logprobs_from_hidden(
    hidden: Tensor,
    labels: Tensor,
    head: Head,
    *,
    drawable: Drawable | None = None,
    temperature: float = 1.0,
    entropy_requires_grad: bool = False,
    chunk_size: int = CHUNK_SIZE,
) -> TokenScores:
    """Apply the output head and score the labels, a slice of tokens at a time.

    Only tokens with a label go through the head. With gradients and more than one slice, each slice is checkpointed:
    backward recomputes its logits instead of storing them. The head is called at least once, with zero tokens if need
    be, so that its parameters are part of the graph on every process.

    Args:
        hidden: Shape (batch, time, hidden): `hidden[b, t]` is what predicts `labels[b, t]`.
        labels: Shape (batch, time), token ids; negative (-100) where there is nothing to score.
        head: From hidden states to logits.
        drawable: (batch, time) sets of tokens; tokens outside get probability 0. All tokens when left out.
        temperature: Divides the logits; must be the temperature that the responses were sampled with ("Adjust the
            sampling temperature" of https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo).
        entropy_requires_grad: Compute the gradient of the entropy (for an entropy bonus), at the cost of its memory.
        chunk_size: Tokens in a slice.

    Returns:
        Log-probabilities and entropies.
    """
    wanted = labels >= 0
    places = torch.nonzero(wanted, as_tuple=True)  # once, as this stalls a GPU
    sets = Drawable.everything(*labels.shape, device=labels.device) if drawable is None else drawable
    parts = (each[places].split(chunk_size) for each in (hidden, labels, sets))
    scored = _score_slices(list(zip(*parts, strict=True)), head, temperature, entropy_requires_grad)
    empty = torch.zeros(labels.shape, dtype=torch.float32, device=hidden.device)
    return TokenScores(*(empty.masked_scatter(wanted, each) for each in scored))


def token_logprobs(hidden: Tensor, labels: Tensor, head: Head, *, chunk_size: int = CHUNK_SIZE) -> Tensor:
    """Log-probabilities of labels over the whole vocabulary: cheaper than `logprobs_from_hidden`, without entropy.

    Args:
        hidden: Shape (batch, time, hidden): `hidden[b, t]` is what predicts `labels[b, t]`.
        labels: Shape (batch, time), token ids; negative (-100) where there is nothing to score.
        head: From hidden states to logits.
        chunk_size: Tokens in a slice.

    Returns:
        Shape (batch, time), float32, in nats; 0 where the label is negative.
    """

    def score(rows: Tensor, targets: Tensor) -> Tensor:
        return -F.cross_entropy(head(rows).float(), targets, reduction="none")

    wanted = labels >= 0
    places = torch.nonzero(wanted, as_tuple=True)
    slices = list(zip(hidden[places].split(chunk_size), labels[places].split(chunk_size), strict=True))
    scored = _each(slices, score)
    empty = torch.zeros(labels.shape, dtype=torch.float32, device=hidden.device)
    return empty.masked_scatter(wanted, torch.cat(scored))


def cross_entropy_sum(
    hidden: Tensor, targets: Tensor, head: Head, *, label_smoothing: float = 0.0, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    """Cross-entropy summed over tokens, a slice of them at a time; backward computes a slice's logits again.

    Args:
        hidden: Shape (tokens, hidden), what predicts each target.
        targets: Shape (tokens,), token ids.
        head: From hidden states to logits.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
        chunk_size: Tokens in a slice.

    Returns:
        A scalar, float32, in nats.
    """

    def score(rows: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(head(rows).float(), wanted, reduction="sum", label_smoothing=label_smoothing)

    slices = list(zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True))
    return torch.stack(_each(slices, score)).sum()


@torch.no_grad()
def kl_from_hidden(
    hidden: Tensor,
    ref_hidden: Tensor,
    mask: Tensor,
    head: Head,
    ref_head: Head,
    *,
    drawable: Drawable,
    temperature: float = 1.0,
    truncate: Callable[[Tensor], Tensor] | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """The exact KL(policy || reference) at each position, summed over the tokens that could be drawn; never negative.

    Along sampled answers its sum has the same expectation as the sum of log-ratios, with less variance. Along answers
    of greedy or beam search, where log-ratios do not estimate KL, it is still a divergence.

    Args:
        hidden: Shape (batch, time, hidden), the policy's: `hidden[b, t]` is what predicts token t.
        ref_hidden: Shape (batch, time, hidden), the reference's.
        mask: Shape (batch, time), 1 where it is to be computed.
        head: From hidden states to the policy's logits.
        ref_head: From hidden states to the reference's logits.
        drawable: (batch, time) the tokens that could be drawn, apart from `truncate`.
        temperature: Divides the logits of both.
        truncate: Sets the policy's logits (tokens, vocabulary) to -inf for tokens outside its top-k and top-p.
        chunk_size: Tokens in a slice.

    Returns:
        Shape (batch, time), float32, in nats; 0 where `mask` is 0.
    """
    wanted, found = mask.bool(), []
    places = torch.nonzero(wanted, as_tuple=True)
    parts = (each[places].split(chunk_size) for each in (hidden, ref_hidden, drawable))
    for own, other, sets in zip(*parts, strict=True):
        logits = head(own).float() / temperature
        logits = logits.masked_fill(~sets.mask(logits.shape[-1]), -torch.inf)
        logits = logits if truncate is None else truncate(logits)
        kept = logits > -torch.inf
        ref_logprobs = (ref_head(other).float() / temperature).masked_fill(~kept, -torch.inf).log_softmax(-1)
        logprobs = logits.log_softmax(-1)
        found.append((logprobs.exp() * (logprobs - ref_logprobs)).masked_fill(~kept, 0).sum(-1).clamp(min=0))
    return torch.zeros(mask.shape, dtype=torch.float32, device=hidden.device).masked_scatter(wanted, torch.cat(found))


def _score_slices(
    slices: Sequence[tuple[Tensor, Tensor, Drawable]], head: Head, temperature: float, entropy_requires_grad: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of all slices, concatenated, each of shape (tokens,).

    A slice is the input of `head`, its targets (tokens,) and the tokens that could be drawn.
    """

    def score(rows: Tensor, targets: Tensor, drawable: Drawable) -> tuple[Tensor, Tensor]:
        logits = drawable.restrict(head(rows).float()).unsqueeze(0)
        logprobs, entropy = selective_log_softmax_and_entropy(
            logits, targets.unsqueeze(0), entropy_requires_grad=entropy_requires_grad, temperature=temperature
        )
        return logprobs[0], entropy[0]

    logprobs, entropy = zip(*_each(slices, score), strict=True)
    return torch.cat(logprobs), torch.cat(entropy)


def _each(slices: Sequence[Sequence[Any]], score: Callable[..., Any]) -> list[Any]:
    """Score every slice; with gradients and several slices, backward computes each anew instead of storing logits."""
    again = torch.is_grad_enabled() and len(slices) > 1
    return [
        checkpoint(score, *each, use_reentrant=False, preserve_rng_state=False) if again else score(*each)
        for each in slices
    ]
