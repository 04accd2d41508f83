"""How much of a text is copied word for word from the training text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]


def longest_copies(texts: Sequence[str], training: str) -> list[int]:
    """Return, for each text, the length in words of its longest run that also occurs in the training text.

    Words are separated by white space; case and punctuation count.

    The search is breadth-first over the run length n: it keeps the positions, in the texts and in the training text,
    where a shared run of n words begins, and extends these to n + 1 words. Few positions are left after a few words,
    so the time is that of a few passes over the training text.
    """
    split = [text.split() for text in texts]
    number_of = {word: number for number, word in enumerate(dict.fromkeys(w for words in split for w in words), 1)}
    # 0 ends each text, and replaces the training words that no text has.
    own = np.array([number for words in split for number in (*map(number_of.__getitem__, words), 0)], np.int64)
    known = np.array([*(number_of.get(word, 0) for word in training.split()), 0], np.int64)
    owners = np.repeat(np.arange(len(split)), [len(words) + 1 for words in split])  # text index of each word

    longest = np.zeros(len(split), np.int64)
    own_places, known_places = np.flatnonzero(own), np.flatnonzero(known)  # where runs of n words begin
    own_runs, known_runs = own[own_places], known[known_places]  # the number of the run that begins there
    n = 1
    while len(own_runs):
        # Renumber the runs from 0, so that the numbers stay small enough to be extended by a word.
        runs, own_runs = np.unique(own_runs, return_inverse=True)
        nearest = np.minimum(np.searchsorted(runs, known_runs), len(runs) - 1)
        is_shared = runs[nearest] == known_runs
        known_places, known_runs = known_places[is_shared], nearest[is_shared]
        is_known = np.isin(np.arange(len(runs)), known_runs)[own_runs]
        own_places, own_runs = own_places[is_known], own_runs[is_known]

        longest[owners[own_places]] = n
        own_places, own_runs = _extend(own_places, own_runs, own, n)
        known_places, known_runs = _extend(known_places, known_runs, known, n)
        n += 1
    return [int(words) for words in longest]


def _extend(places: Array, runs: Array, words: Array, n: int) -> tuple[Array, Array]:
    """Extend runs of n words by the word that follows each; drop those at the end of a text."""
    following = words[places + n]
    goes_on = following > 0
    return places[goes_on], (runs[goes_on] << 32) + following[goes_on]
