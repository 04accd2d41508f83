"""The longest run of words that stands in the training text, against looking for each of them."""

from __future__ import annotations

import random

import pytest

from gpt2tg.comparison.memorisation import longest_copies


def by_search(text: str, training: str) -> int:
    words, known = text.split(), f" {' '.join(training.split())} "
    runs = [(end - start, words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1)]
    return max((length for length, run in runs if f" {' '.join(run)} " in known), default=0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a cat sat on the mat", 4),  # cat sat on the
        ("The cat", 2),
        ("the cat", 1),  # capitals are not the same
        ("cat, log", 0),  # nor is a mark
        ("dog", 0),
        ("", 0),
        ("The cat sat on the log. The end.", 8),
        ("on\nthe   log.", 3),  # white space does not matter
    ],
)
def test_copies_by_hand(text: str, words: int) -> None:
    assert longest_copies([text], "The cat sat on the log. The end.") == [words]


def test_copies_are_those_that_a_search_finds() -> None:
    draw = random.Random(3)
    for _ in range(60):
        letters = "ab" if draw.random() < 0.5 else "abcdefgh"
        training = " ".join(draw.choices(letters, k=draw.randrange(0, 80)))
        texts = [" ".join(draw.choices(letters + "z", k=draw.randrange(0, 25))) for _ in range(4)]
        assert longest_copies(texts, training) == [by_search(text, training) for text in texts]


def test_a_run_does_not_go_on_in_the_next_text() -> None:
    assert longest_copies(["a b", "c d"], "a b c d") == [2, 2]
    assert longest_copies([], "a b") == []


def test_many_words_of_the_text_are_walked_in_seconds() -> None:
    """Half a million words, of which every one stands in the texts."""
    draw = random.Random(0)
    training = draw.choices([f"w{number}" for number in range(2000)], k=500_000)
    texts = [" ".join([*training[start : start + 60], "x"]) for start in range(0, 100_000, 1000)]
    assert longest_copies(texts, " ".join(training)) == [60] * 100
