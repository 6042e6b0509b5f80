from __future__ import annotations

import math

import pytest

from src.metrics.diversity import distinct_n, mean_length, repetition


def test_distinct_counts_over_all_texts_together() -> None:
    texts = ["I do not know.", "I do not know!", "i like tea"]
    # 11 words, of which i, do, not, know, like, tea differ; 8 pairs, of which 5 differ.
    assert distinct_n(texts, 1) == pytest.approx(6 / 11)
    assert distinct_n(texts, 2) == pytest.approx(5 / 8)


def test_distinct_of_nothing_is_zero_and_of_no_repeats_is_one() -> None:
    assert distinct_n([], 1) == 0.0
    assert distinct_n(["one two", ""], 3) == 0.0
    assert distinct_n(["one two three"], 2) == 1.0
    assert distinct_n(["커피 한 잔", "커피 한 잔"], 1) == 0.5


def test_repetition_is_within_a_text_only() -> None:
    assert repetition(["a b c d e", "a b c d e"]) == 0.0
    # 9 words, 6 four-grams, of which "a b c a", "b c a b", "c a b c" differ.
    assert repetition(["a b c a b c a b c"]) == pytest.approx(1 / 2)
    assert repetition(["a b c a b c a b c", "short"]) == pytest.approx(1 / 4)
    assert repetition(["no no no no"], n=1) == pytest.approx(3 / 4)


def test_mean_length_in_words() -> None:
    assert mean_length(["Tom's tea, please.", ""]) == 2.0


def test_no_texts_have_no_mean() -> None:
    assert math.isnan(repetition([]))
    assert math.isnan(mean_length([]))


def test_an_ngram_has_a_word() -> None:
    with pytest.raises(ValueError, match="at least one word"):
        distinct_n(["a"], 0)
