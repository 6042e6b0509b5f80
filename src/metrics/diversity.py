"""How varied generated texts are: models that learn to say one safe thing score well on overlap and badly here.

Words are lowercased runs of letters, marks and digits of any script (`unicode_words`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from src.metrics.rouge_scorer import unicode_words


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Distinct-n over all texts together (Li et al., 2016, https://aclanthology.org/N16-1014).

    The number of different n-grams over the number of n-grams. (Li et al. divide by the number of words; dividing by
    the number of n-grams, as most implementations do, makes 1 mean for every n that no n-gram occurs twice.) It falls
    as a sample grows, so compare only samples of similar size.

    Args:
        texts: Generated texts.
        n: Length of the n-grams in words, from 1.

    Returns:
        0 to 1; 0 where no text has n words.
    """
    grams = [gram for text in texts for gram in _ngrams(unicode_words(text), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[str], n: int = 4) -> float:
    """How much texts repeat themselves: seq-rep-n (Welleck et al., 2020, https://arxiv.org/abs/1908.04319).

    The share of a text's n-grams that it has had before, 1 - different n-grams / n-grams, as the mean over texts.

    Args:
        texts: Generated texts; one of fewer than n words repeats nothing.
        n: Length of the n-grams in words, from 1.

    Returns:
        0 to 1; NaN where there is no text.
    """
    shares = []
    for text in texts:
        grams = _ngrams(unicode_words(text), n)
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return math.fsum(shares) / len(shares) if shares else math.nan


def mean_length(texts: Sequence[str]) -> float:
    """Mean number of words of a text; NaN where there is no text."""
    return sum(len(unicode_words(text)) for text in texts) / len(texts) if texts else math.nan


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n-grams have at least one word, not {n}")
    return list(zip(*(words[i:] for i in range(n)), strict=False))
