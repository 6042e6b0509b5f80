"""ROUGE (Lin, 2004, https://aclanthology.org/W04-1013) of one example, with several references.

The counting is the `rouge_score` package's, which `evaluate` and published results use. Added are caches of tokenised
texts and stemmed words, several references, and words of other scripts than Latin. torch is not imported here, so that
`parley score` starts at once.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Literal

from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize
from rouge_score.tokenizers import Tokenizer

from src.errors import ParleyError

ROUGE_KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BEST_KEYS = tuple(f"{key}_best" for key in ROUGE_KEYS)

TokenizerName = Literal["standard", "unicode"]


def unicode_words(text: str) -> list[str]:
    """The lowercased runs of letters, marks and digits of any script, after NFC normalisation."""
    # Not the regular expression \w+: Python's \w excludes combining marks, so it would cut Hindi words at each vowel.
    text = unicodedata.normalize("NFC", text.lower())
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split()


class CachingStemmer:
    """nltk's Porter stemmer, as `rouge_score` uses it, with a cache."""

    def __init__(self) -> None:
        self._stemmer = PorterStemmer()
        self._stems: dict[str, str] = {}

    def stem(self, word: str) -> str:
        """The word without its suffix."""
        stem = self._stems.get(word)
        if stem is None:
            stem = self._stems[word] = self._stemmer.stem(word)
        return stem


class RougeTokenizer(Tokenizer):
    """Splits texts into words, with a cache.

    Args:
        name: "standard" keeps runs of `[a-z0-9]` in the lowercased text and drops all else, as ROUGE always has: Korean
            text has no words at all then. "unicode" keeps runs of letters, marks and digits of any script, after NFC
            normalisation; on ASCII text it gives the same words. A script that does not put spaces between words
            (Chinese, Japanese, Thai) needs them put in beforehand.
        use_stemmer: Stem ASCII words of more than three characters.
    """

    def __init__(self, name: TokenizerName = "standard", use_stemmer: bool = True) -> None:
        if name not in ("standard", "unicode"):
            raise ParleyError(f"there is no ROUGE tokenizer {name!r}; choose standard or unicode.")
        self._unicode = name == "unicode"
        self._stemmer = CachingStemmer() if use_stemmer else None
        self._texts: dict[str, list[str]] = {}

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, cached until `forget`."""
        words = self._texts.get(text)
        if words is None:
            words = self._stemmed(unicode_words(text)) if self._unicode else tokenize(text, self._stemmer)
            self._texts[text] = words
        return words

    def forget(self) -> None:
        """Clear the cache of texts; cached stems are kept."""
        self._texts.clear()

    def _stemmed(self, words: list[str]) -> list[str]:
        if self._stemmer is None:
            return words
        return [self._stemmer.stem(word) if len(word) > 3 and word.isascii() else word for word in words]


class ExampleScorer:
    """ROUGE F-measures of one example at a time.

    Args:
        use_stemmer: See `RougeTokenizer`.
        tokenizer: See `RougeTokenizer`.
    """

    def __init__(self, use_stemmer: bool = True, tokenizer: TokenizerName = "standard") -> None:
        self._tokenizer = RougeTokenizer(tokenizer, use_stemmer)
        self._one_line = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=self._tokenizer)
        self._several_lines = RougeScorer(list(ROUGE_KEYS), tokenizer=self._tokenizer)

    def __call__(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        """Score a prediction.

        Args:
            prediction: The generated text; one without any word scores 0.
            references: The reference texts, one or more.

        Returns:
            `rouge1`, `rouge2`, `rougeL`, `rougeLsum`: the mean of the F-measures (0 to 1) over the references, and
            `rouge1_best`, ...: the best of them.

        Raises:
            ParleyError: There is no reference.
        """
        if isinstance(references, str):
            raise TypeError("references must be a list of texts, not one text")
        if not references:
            raise ParleyError("an example has no reference to score its prediction against; give it one or drop it.")
        pairs = [self._pair(prediction, reference) for reference in references]
        self._tokenizer.forget()
        columns = {key: [pair[key] for pair in pairs] for key in ROUGE_KEYS}
        means = {key: math.fsum(column) / len(column) for key, column in columns.items()}
        return means | {f"{key}_best": max(column) for key, column in columns.items()}

    def _pair(self, prediction: str, reference: str) -> dict[str, float]:
        if "\n" in prediction or "\n" in reference:
            scores = self._several_lines.score(reference, prediction)
            return {key: scores[key].fmeasure for key in ROUGE_KEYS}
        scores = self._one_line.score(reference, prediction)
        # For texts of one line ROUGE-Lsum, the union of longest common subsequences over lines, equals ROUGE-L.
        return {key: scores["rougeL" if key == "rougeLsum" else key].fmeasure for key in ROUGE_KEYS}


def rouge_scores(
    prediction: str,
    references: Sequence[str],
    *,
    use_stemmer: bool = True,
    tokenizer: TokenizerName = "standard",
) -> dict[str, float]:
    """Score one prediction; keep an `ExampleScorer` to score many. See `ExampleScorer.__call__`."""
    return ExampleScorer(use_stemmer, tokenizer)(prediction, references)
