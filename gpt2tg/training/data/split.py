"""Which examples are held out: about the asked share of the text, and never a copy of what is learned from."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

# Of fewer texts a whole one may be far more than the share.
FEW_TEXTS = 20

# A shorter example is held out whole or not at all.
LEAST_TO_PART_BYTES = 512

# Tokens that are held out at the end of one example, where so many are held out in all: enough to be read in context,
# and few of many short examples lose their end.
STRETCH_TOKENS = 512

# Fewer tokens measure nothing.
LEAST_TOKENS = 32


def _none() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Split:
    """The numbers of the examples that are held out, ascending."""

    whole: np.ndarray = field(default_factory=_none)
    parted: np.ndarray = field(default_factory=_none)  # their end is held out, the rest is learned


def choose(hashes: np.ndarray, sizes: np.ndarray, share: float, seed: int) -> Split:
    """Hold out `share` of the text, as near as may be; the same seed chooses the same.

    Whole examples are chosen by number, as long as that holds out about the share of the text. Where it does not,
    because the examples are of very different lengths, whole ones are chosen by their sizes, and those that are longer
    than all that is to be held out are parted. Of few texts all are parted that are long enough. Copies of one example
    are on the same side.

    Args:
        hashes: (examples,) equal for equal examples.
        sizes: (examples,) in bytes.
    """
    text, texts = number_texts(hashes)
    lengths = np.empty(texts, dtype=np.int64)
    lengths[text] = sizes
    text_sizes = lengths if texts == len(sizes) else lengths * np.bincount(text)
    total = int(sizes.sum())
    count = min(max(1, round(texts * share)), texts - 1)
    chosen = np.zeros(texts, dtype=bool)
    chosen[random.Random(seed).sample(range(texts), count)] = True
    can_be_parted = lengths >= LEAST_TO_PART_BYTES
    is_few = texts < FEW_TEXTS or texts * share < 1
    is_fair = _is_fair(text_sizes[chosen].sum(), max(share, 1 / texts) * total, total)
    if is_fair and not (is_few and can_be_parted.any()):
        return Split(np.flatnonzero(chosen[text]))
    parted = can_be_parted & (is_few | (text_sizes > min(share, 1 - share) * total))
    chosen = _by_size(np.where(parted, 0, text_sizes), share, seed, at_least_one=not parted.any())
    return Split(np.flatnonzero(chosen[text]), np.flatnonzero(parted[text]))


def _is_fair(held_out: float, expected: float, total: int) -> bool:
    """Whether neither side has less than half of what it is to have, and what is held out is at most twice as much."""
    return expected / 2 <= held_out <= expected * 2 and total - held_out >= (total - expected) / 2


def number_texts(hashes: np.ndarray) -> tuple[np.ndarray | slice, int]:
    """(examples,) the number of each example's text, counted in the order of their first examples; how many there are.

    Where no two examples are alike, which is found in less memory, the numbers are all those there are, as a slice.
    """
    ordered = np.sort(hashes)  # np.unique takes twenty times as long for many millions
    if (ordered[1:] != ordered[:-1]).all():
        return slice(None), len(hashes)
    del ordered
    order = np.argsort(hashes, kind="stable")
    is_first = np.r_[True, np.diff(hashes[order]) != 0]
    by_place = np.argsort(order[is_first])  # equal in all processes, as the hashes are not
    rank = np.empty(len(by_place), dtype=np.int64)
    rank[by_place] = np.arange(len(by_place))
    text = np.empty(len(hashes), dtype=np.int64)
    text[order] = rank[np.cumsum(is_first) - 1]
    return text, len(by_place)


def _by_size(sizes: np.ndarray, share: float, seed: int, at_least_one: bool) -> np.ndarray:
    """(texts,) bool: in the order of the seed, each that brings the sum nearer to the share; never all.

    Args:
        sizes: (texts,) those of size 0 are left out.
    """
    total = int(sizes.sum())
    chosen, wanted = np.zeros(len(sizes), dtype=bool), share * total
    there = np.flatnonzero(sizes)
    smallest = sizes[there].min(initial=total)
    keys = np.frombuffer(random.Random(seed).randbytes(8 * len(there)), dtype="<u8")
    for text in there[np.argsort(keys, kind="stable")][1:]:
        if smallest >= 2 * wanted:
            break
        if sizes[text] < 2 * wanted:
            chosen[text] = True
            wanted -= sizes[text]
    if at_least_one and not chosen.any() and len(there) > 1:
        chosen[there[np.argmin(sizes[there])]] = True
    return chosen


def ends_of(lengths: np.ndarray, hashes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(examples,) how many tokens are held out at the end of each parted example: `share` of them all, in stretches.

    Long examples give in proportion to their length; short ones by chance, each a stretch or nothing. Copies of one
    example give the same.

    Args:
        lengths: (examples,) in tokens that carry loss.
        hashes: (examples,) equal for equal examples.
    """
    text, texts = number_texts(hashes)
    so_far = np.empty(texts, dtype=np.int64)
    so_far[text] = lengths
    so_far = np.cumsum(so_far)
    wanted = max(share * so_far[-1], LEAST_TOKENS)
    stretches = max(1, int(wanted) // STRETCH_TOKENS)
    edges = np.floor(so_far / so_far[-1] * stretches + random.Random(seed).random())
    given = np.round(np.diff(edges, prepend=0) * wanted / stretches).astype(np.int64)
    return np.clip(given[text], 0, np.maximum(lengths - 2, 0))
