"""Metrics of texts, against hand-made tables, sacrebleu, scipy and numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import sacrebleu

from gpt2tg.comparison.metrics import (
    distinct_n,
    ends_in_loop,
    self_bleu,
    set_metrics,
    split_words,
    text_metrics,
    zipf_coefficient,
)
from gpt2tg.generation.generator import Sample


def sample(completion: str, logprob: float = -1.0, ids: Sequence[int] = (1, 2), finish: str = "length") -> Sample:
    return Sample("The", completion, 0, 0, 1, tuple(ids), finish, logprob)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The King's men, the KING!", ["the", "king's", "men", ",", "the", "king", "!"]),
        ("don\N{RIGHT SINGLE QUOTATION MARK}t 3.5", ["don\N{RIGHT SINGLE QUOTATION MARK}t", "3", ".", "5"]),
        ('\'twas "so"', ["'", "twas", '"', "so", '"']),
        (" \n", []),
    ],
)
def test_words_and_punctuation_are_split(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("words", "n", "share"),
    [
        ("a b c d", 1, 1.0),
        ("a b a b", 1, 2 / 4),
        ("a b a b", 2, 2 / 3),  # ab ba ab
        ("a b a b a b", 3, 2 / 4),  # aba bab aba bab
        ("a a a a a", 4, 1 / 2),
        ("a b c d a b c d", 4, 4 / 5),  # the last of five occurred before
        ("a b c", 4, None),
        ("", 1, None),
    ],
)
def test_distinct_n(words: str, n: int, share: float | None) -> None:
    assert distinct_n(words.split(), n) == (pytest.approx(share) if share is not None else None)


@pytest.mark.parametrize(
    ("words", "is_loop"),
    [
        ("x y a b a b a b", True),
        ("x y a b a b a", False),  # two and a half rounds
        ("a b a b a b x", False),  # not at the end
        ("x y b a b a b a b", True),  # begins in the middle of a round
        ("no no no", False),  # a phrase of one word
        ("no no no no no no", True),
        ("the cat sat . the cat sat . the cat sat .", True),
        ("the cat sat . the dog sat . the cat sat .", False),
        ("", False),
    ],
)
def test_ends_in_loop(words: str, is_loop: bool) -> None:
    assert ends_in_loop(words.split()) is is_loop


def test_self_bleu_equals_sacrebleu_with_the_other_texts() -> None:
    texts = [
        ["the", "old", "king", "went", "into", "the", "wood", "and", "found", "a", "bird"],
        ["the", "old", "king", "went", "into", "the", "town", "and", "found", "a", "wife"],
        ["a", "fox", "was", "sitting", "by", "the", "side", "of", "the", "wood"],
    ]
    for own, found in zip(texts, self_bleu(texts), strict=True):
        others = [" ".join(text) for text in texts if text is not own]
        expected = sacrebleu.sentence_bleu(" ".join(own), others, tokenize="none", use_effective_order=True)
        assert found == pytest.approx(expected.score / 100)


def test_self_bleu_of_equal_single_and_empty_texts() -> None:
    text = ["once", "upon", "a", "time", "there", "was"]
    assert self_bleu([text, text]) == [pytest.approx(1), pytest.approx(1)]
    assert self_bleu([text]) == [None]
    assert self_bleu([text, [], text])[1] is None


def test_self_bleu_does_not_rise_with_the_size_of_the_set() -> None:
    """Each text has one twin: certainly among all 79 others, but seldom among the 15 references."""
    rows = np.random.default_rng(0).integers(0, 10**6, (40, 12)).astype(str).tolist()
    found = [score for score in self_bleu([*rows, *rows]) if score is not None and score > 0.99]
    assert 0 < len(found) < 40


def test_zipf_coefficient_equals_scipy_regression() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(1)
    words = [str(number) for number in draw.zipf(1.5, 3000)]
    counts = sorted((words.count(word) for word in set(words)), reverse=True)
    line = stats.linregress(np.log(np.arange(1, len(counts) + 1)), np.log(counts))
    assert zipf_coefficient([words[:1000], words[1000:]]) == pytest.approx(-line.slope)


def test_zipf_coefficient_of_equal_frequencies_is_zero() -> None:
    assert str(zipf_coefficient([["a", "b", "c", "d", "e"]])) == "0.0"


def test_zipf_coefficient_of_a_perfect_law_is_one() -> None:
    words = [str(rank) for rank in range(1, 13) for _ in range(27720 // rank)]  # 27720 is divisible by 1 to 12
    assert zipf_coefficient([words]) == pytest.approx(1)
    assert zipf_coefficient([["a", "a"]]) is None


def test_set_metrics_by_hand() -> None:
    texts = text_metrics(
        [sample("a b a b", -2.0, (1, 2), "eos"), sample("a b c d e f", -6.0, (1, 2, 3, 4, 5, 6))], copied=[3, 5]
    )
    found = set_metrics(texts, seconds=4.0)
    assert (found.texts, found.length, found.ended, found.loops) == (2, 4.0, 0.5, 0.0)
    assert found.tokens_per_second == 2.0
    assert found.logprob == -1.0  # 8 nats over 8 tokens, not the mean of the two texts
    assert found.perplexity == pytest.approx(math.e)
    assert found.distinct_1 == pytest.approx((0.5 + 1) / 2)
    assert found.distinct_2 == pytest.approx((2 / 3 + 1) / 2)
    assert found.distinct_3 == 1.0
    assert found.repetition == 0.0
    assert (found.copied, found.copied_most) == (4.0, 5)


def test_texts_without_words_have_no_word_metrics() -> None:
    found = set_metrics(text_metrics([sample("", -0.5, (0,), "eos"), sample("", -0.5, (), "stop")]))
    assert (found.logprob, found.length, found.ended) == (-1.0, 0.5, 0.5)
    assert (found.distinct_1, found.repetition, found.self_bleu, found.zipf) == (None, None, None, None)
