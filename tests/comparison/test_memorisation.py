"""The longest run copied from the training text, against a search for every run."""

from __future__ import annotations

import random

import pytest

from gpt2tg.comparison.memorisation import longest_copies


def longest_by_brute_force(text: str, training: str) -> int:
    words, known = text.split(), f" {' '.join(training.split())} "
    runs = [(end - start, words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1)]
    return max((length for length, run in runs if f" {' '.join(run)} " in known), default=0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a cat sat on the mat", 4),  # cat sat on the
        ("The cat", 2),
        ("the cat", 1),  # case counts
        ("cat, log", 0),  # punctuation counts
        ("dog", 0),
        ("", 0),
        ("The cat sat on the log. The end.", 8),
        ("on\nthe   log.", 3),  # white space does not matter
    ],
)
def test_copies_by_hand(text: str, words: int) -> None:
    assert longest_copies([text], "The cat sat on the log. The end.") == [words]


def test_copies_equal_those_of_a_brute_force_search() -> None:
    draw = random.Random(3)
    for _ in range(60):
        letters = "ab" if draw.random() < 0.5 else "abcdefgh"
        training = " ".join(draw.choices(letters, k=draw.randrange(0, 80)))
        texts = [" ".join(draw.choices(letters + "z", k=draw.randrange(0, 25))) for _ in range(4)]
        assert longest_copies(texts, training) == [longest_by_brute_force(text, training) for text in texts]


def test_run_does_not_continue_in_the_next_text() -> None:
    assert longest_copies(["a b", "c d"], "a b c d") == [2, 2]
    assert longest_copies([], "a b") == []


def test_half_a_million_words_take_seconds() -> None:
    """Every word of the training text occurs in the texts, the slowest case."""
    draw = random.Random(0)
    training = draw.choices([f"w{number}" for number in range(2000)], k=500_000)
    texts = [" ".join([*training[start : start + 60], "x"]) for start in range(0, 100_000, 1000)]
    assert longest_copies(texts, " ".join(training)) == [60] * 100
