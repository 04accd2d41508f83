"""What is counted in texts: hand-made tables, and sacrebleu, scipy and numpy as oracles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import sacrebleu

from gpt2tg.comparison.figures import (
    LEAST_SCALES,
    TextFigures,
    Yardstick,
    distinct,
    ends_in_loop,
    figures_of,
    self_bleu,
    text_figures,
    words_of,
    zipf,
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
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("words", "n", "share"),
    [
        ("a b c d", 1, 1.0),
        ("a b a b", 1, 2 / 4),
        ("a b a b", 2, 2 / 3),  # ab ba ab
        ("a b a b a b", 3, 2 / 4),  # aba bab aba bab
        ("a a a a a", 4, 1 / 2),
        ("a b c d a b c d", 4, 4 / 5),  # the last one stood there before
        ("a b c", 4, None),
        ("", 1, None),
    ],
)
def test_distinct_runs(words: str, n: int, share: float | None) -> None:
    assert distinct(words.split(), n) == (pytest.approx(share) if share is not None else None)


@pytest.mark.parametrize(
    ("words", "is_loop"),
    [
        ("x y a b a b a b", True),
        ("x y a b a b a", False),  # two rounds and a half
        ("a b a b a b x", False),  # not at the end
        ("x y b a b a b a b", True),  # cut in the middle of a round
        ("no no no", False),  # one word three times is no loop
        ("no no no no no no", True),
        ("the cat sat . the cat sat . the cat sat .", True),
        ("the cat sat . the dog sat . the cat sat .", False),
        ("", False),
    ],
)
def test_loops(words: str, is_loop: bool) -> None:
    assert ends_in_loop(words.split()) is is_loop


def test_self_bleu_is_that_of_sacrebleu_with_the_other_texts_as_references() -> None:
    texts = [
        ["the", "old", "king", "went", "into", "the", "wood", "and", "found", "a", "bird"],
        ["the", "old", "king", "went", "into", "the", "town", "and", "found", "a", "wife"],
        ["a", "fox", "was", "sitting", "by", "the", "side", "of", "the", "wood"],
    ]
    for own, found in zip(texts, self_bleu(texts), strict=True):
        others = [" ".join(text) for text in texts if text is not own]
        expected = sacrebleu.sentence_bleu(" ".join(own), others, tokenize="none", use_effective_order=True)
        assert found == pytest.approx(expected.score / 100)


def test_self_bleu_of_equal_texts_is_1_and_of_a_lone_or_empty_one_nothing() -> None:
    text = ["once", "upon", "a", "time", "there", "was"]
    assert self_bleu([text, text]) == [pytest.approx(1), pytest.approx(1)]
    assert self_bleu([text]) == [None]
    assert self_bleu([text, [], text])[1] is None


def test_self_bleu_does_not_rise_with_the_number_of_texts() -> None:
    """Each of 40 pairs of equal texts would find its twin among 79 others, but seldom among 15."""
    rows = np.random.default_rng(0).integers(0, 10**6, (40, 12)).astype(str).tolist()
    found = [score for score in self_bleu([*rows, *rows]) if score is not None and score > 0.99]
    assert 0 < len(found) < 40


def test_zipf_is_the_slope_of_a_line_through_the_logarithms() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(1)
    words = [str(number) for number in draw.zipf(1.5, 3000)]
    counts = sorted((words.count(word) for word in set(words)), reverse=True)
    line = stats.linregress(np.log(np.arange(1, len(counts) + 1)), np.log(counts))
    assert zipf([words[:1000], words[1000:]]) == pytest.approx(-line.slope)


def test_zipf_of_words_that_come_once_each_has_no_sign() -> None:
    assert str(zipf([["a", "b", "c", "d", "e"]])) == "0.0"


def test_zipf_of_frequencies_that_follow_the_law() -> None:
    words = [str(rank) for rank in range(1, 13) for _ in range(27720 // rank)]  # 27720 is divisible by 1 to 12
    assert zipf([words]) == pytest.approx(1)
    assert zipf([["a", "a"]]) is None


def test_figures_of_a_set_by_hand() -> None:
    texts = text_figures(
        [sample("a b a b", -2.0, (1, 2), "eos"), sample("a b c d e f", -6.0, (1, 2, 3, 4, 5, 6))], copied=[3, 5]
    )
    found = figures_of(texts, seconds=4.0)
    assert (found.texts, found.length, found.ended, found.loops) == (2, 4.0, 0.5, 0.0)
    assert found.tokens_per_second == 2.0
    assert found.logprob == -1.0  # 8 nats over 8 tokens, not the mean of the two texts
    assert found.perplexity == pytest.approx(math.e)
    assert found.distinct_1 == pytest.approx((0.5 + 1) / 2)
    assert found.distinct_2 == pytest.approx((2 / 3 + 1) / 2)
    assert found.distinct_3 == 1.0
    assert found.repetition == 0.0
    assert (found.copied, found.copied_most) == (4.0, 5)


def test_texts_without_a_word_say_nothing_and_break_nothing() -> None:
    found = figures_of(text_figures([sample("", -0.5, (0,), "eos"), sample("", -0.5, (), "stop")]))
    assert (found.logprob, found.length, found.ended) == (-1.0, 0.5, 0.5)
    assert (found.distinct_1, found.repetition, found.self_bleu, found.zipf) == (None, None, None, None)


def human_texts(number: int, seed: int = 0) -> list[TextFigures]:
    draw = np.random.default_rng(seed)
    return text_figures(
        [
            sample(" ".join(f"w{word}" for word in draw.zipf(1.4, 50) % 300), -draw.uniform(100, 200), range(50))
            for _ in range(number)
        ]
    )


def test_distance_by_hand() -> None:
    """The mean over the figures of how far each is from the human one, in units of its spread."""
    texts = human_texts(40)
    stick = Yardstick(texts, size=40)
    human = figures_of(texts)
    assert stick.distance(human) == 0
    shifted = replace(human, logprob=human.logprob - 2 * stick.scales["logprob"], loops=0.1)
    assert stick.differences(shifted)["logprob"] == pytest.approx(-2)
    assert stick.scales["loops"] == LEAST_SCALES["loops"]  # no human text of these ends in a loop
    assert stick.distance(shifted) == pytest.approx((2 + 0.1 / 0.02) / len(LEAST_SCALES))


def test_scales_are_the_standard_error_of_the_figures() -> None:
    texts = human_texts(60)
    for size in (10, 40):
        error = np.std([-text.logprob / text.tokens for text in texts]) / math.sqrt(size)
        assert Yardstick(texts, size, resamples=2000).scales["logprob"] == pytest.approx(error, rel=0.1)


def test_human_text_is_about_as_far_from_itself_as_chance_makes_it() -> None:
    stick = Yardstick(human_texts(100), size=100)
    assert 0.2 < stick.own_distance < 1.0
    other = figures_of(human_texts(100, seed=5))
    assert stick.distance(other) < 4 * stick.own_distance


def test_zipf_is_held_against_human_sets_of_the_same_size() -> None:
    """A quarter of a text has a lower coefficient than the whole: that is no distance."""
    texts = human_texts(80)
    quarter = figures_of(texts[:20])
    assert quarter.zipf < figures_of(texts).zipf - 0.1
    assert abs(Yardstick(texts, size=20).differences(quarter)["zipf"]) < 3


def test_figures_that_a_set_lacks_do_not_count() -> None:
    found = figures_of(text_figures([sample("", -0.5, (0,), "eos")]))
    stick = Yardstick(human_texts(10), size=1)
    assert set(stick.differences(found)) == {"logprob", "loops", "length"}
