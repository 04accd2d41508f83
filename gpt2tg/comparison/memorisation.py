"""How much of a text stands word for word in the training text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def longest_copies(texts: Sequence[str], training: str) -> list[int]:
    """For each text, how many words its longest run has that stands in the training text, marks and capitals included.

    The places of the training text are followed side by side down the tree of all runs of the texts. Where no run of
    n words of a text begins, n + 1 words need not be looked at, and few places are left after some words: the time is
    that of reading the training text a few times.
    """
    split = [text.split() for text in texts]
    number_of = {word: number for number, word in enumerate(dict.fromkeys(w for words in split for w in words), 1)}
    # 0 is no word of the texts: it ends each of them, and stands for every word of the training text that is in none.
    own = np.array([number for words in split for number in (*map(number_of.__getitem__, words), 0)], np.int64)
    known = np.array([*(number_of.get(word, 0) for word in training.split()), 0], np.int64)
    owners = np.repeat(np.arange(len(split)), [len(words) + 1 for words in split])

    longest = np.zeros(len(split), np.int64)
    own_places, known_places = np.flatnonzero(own), np.flatnonzero(known)  # where runs of n words begin
    own_runs, known_runs = own[own_places], known[known_places]  # which run it is, by number
    n = 1
    while len(own_runs):
        # Runs of the texts are numbered anew, so that the numbers stay small; those of the training text follow.
        runs, own_runs = np.unique(own_runs, return_inverse=True)
        nearest = np.minimum(np.searchsorted(runs, known_runs), len(runs) - 1)
        is_shared = runs[nearest] == known_runs
        known_places, known_runs = known_places[is_shared], nearest[is_shared]
        is_known = np.isin(np.arange(len(runs)), known_runs)[own_runs]
        own_places, own_runs = own_places[is_known], own_runs[is_known]

        longest[owners[own_places]] = n
        own_places, own_runs = _extended(own_places, own_runs, own, n)
        known_places, known_runs = _extended(known_places, known_runs, known, n)
        n += 1
    return longest.tolist()


def _extended(places: np.ndarray, runs: np.ndarray, words: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs of n words with the word that follows them, where one does."""
    following = words[places + n]
    goes_on = following > 0
    return places[goes_on], (runs[goes_on] << 32) + following[goes_on]
