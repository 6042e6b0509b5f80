"""ROUGE (Lin, 2004, https://aclanthology.org/W04-1013) of generated texts against one or several references.

The figures are those of the `rouge_score` package, which `evaluate` and published results use. torchmetrics carries the
sums over batches and processes, but its own scorer is not used: its ROUGE-Lsum splits sentences with nltk's punkt
model, which is a download and differs from the standard split at newlines; it sums in float32; and where a prediction
has several references, one pass yields either their mean or the best of them, never both.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Literal

import torch
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize
from rouge_score.tokenizers import Tokenizer
from torch import Tensor
from torchmetrics import Metric

from src.errors import ParleyError

ROUGE_KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BEST_KEYS = tuple(f"{key}_best" for key in ROUGE_KEYS)

TokenizerName = Literal["standard", "unicode"]


class CachingStemmer:
    """nltk's Porter stemmer, as `rouge_score` uses it, that stems each word once in its life."""

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
    """Text to words.

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
        """The words of a text, remembered until `forget`."""
        words = self._texts.get(text)
        if words is None:
            words = self._unicode_words(text) if self._unicode else tokenize(text, self._stemmer)
            self._texts[text] = words
        return words

    def forget(self) -> None:
        """Let go of the texts seen so far; stems are kept."""
        self._texts.clear()

    def _unicode_words(self, text: str) -> list[str]:
        # Not the regular expression \w+: Python's \w has no combining marks, so it would cut Hindi words at each vowel.
        text = unicodedata.normalize("NFC", text.lower())
        words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split()
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
            references: One text or more that it could have been.

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
        # The union of longest common subsequences over sentences is, of one sentence, the longest common subsequence.
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


class Rouge(Metric):
    """ROUGE-1, 2, L and Lsum F-measures over a data set, with several references an example.

    An example's score is the mean over its references (and, as `..._best`, the best of them); the result is the mean
    over examples. Where all examples have equally many references, as DialogSum's test split has three, this is the
    mean over (prediction, reference) rows that the hub's 1,500-row version amounts to; where they differ, each example
    still counts once.

    `evaluate.load("rouge")` reports the median of 1,000 resampled means in place of the mean, with an unset seed, so
    its figures waver around these by some 0.0002.

    Args:
        use_stemmer: Strip English suffixes (Porter) of words of more than three characters before matching.
        tokenizer: "standard", or "unicode" for text that is not in English; see `RougeTokenizer`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    # Scores are summed as whole multiples of 2^-40: adding integers is exact, so the result is the same bit for bit in
    # any order and over any number of processes, whatever the precision of the model and on devices without float64.
    # Room for 8 million examples.
    _UNIT = 2**40

    def __init__(self, use_stemmer: bool = True, tokenizer: TokenizerName = "standard") -> None:
        super().__init__()
        self.score_example = ExampleScorer(use_stemmer, tokenizer)
        keys = len(ROUGE_KEYS) + len(BEST_KEYS)
        self.add_state("total", torch.zeros(keys, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add a batch.

        Args:
            predictions: `batch` generated texts.
            references: `batch` lists of one or more texts.

        Raises:
            ParleyError: An example has no reference.
            ValueError: There are not as many lists of references as predictions.
        """
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} lists of references")
        examples = [
            self.score_example(prediction, texts) for prediction, texts in zip(predictions, references, strict=True)
        ]
        units = [sum(round(scores[key] * self._UNIT) for scores in examples) for key in ROUGE_KEYS + BEST_KEYS]
        self.total += torch.tensor(units, device=self.total.device)
        self.count += len(examples)

    def compute(self) -> dict[str, float]:
        """The mean over all examples of all processes, each 0 to 1; NaN where there was none."""
        count = int(self.count)
        totals = self.total.tolist()
        return {
            key: total / self._UNIT / count if count else math.nan
            for key, total in zip(ROUGE_KEYS + BEST_KEYS, totals, strict=True)
        }
