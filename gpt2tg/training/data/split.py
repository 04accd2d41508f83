"""Choose the held-out examples: about the requested share of the text, and never a copy of a training example."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

# With fewer texts, one whole text may be far more than the share: the ends of texts are held out instead.
FEW_TEXTS = 20

# Shorter examples are never cut in two.
MIN_BYTES_TO_CUT = 512

# When ends are held out, each has about this many tokens: enough context to measure the loss in, and long enough that
# only few short examples lose their end.
END_TOKENS = 512

# The least that is held out: fewer tokens measure nothing.
MIN_TOKENS = 32


def _no_examples() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Split:
    """The numbers of the held-out examples, ascending."""

    whole: np.ndarray = field(default_factory=_no_examples)
    partial: np.ndarray = field(default_factory=_no_examples)  # only their end is held out


def choose_held_out(hashes: np.ndarray, sizes: np.ndarray, share: float, seed: int, may_cut: bool = True) -> Split:
    """Hold out about `share` of the text. The same seed gives the same split, and copies are on the same side.

    Whole examples are drawn at random, each with the same probability, if that holds out about the share of the text.
    If it does not, because their lengths differ too much, whole examples are chosen by size, and examples longer than
    all that is to be held out are cut in two. With few texts, all that are long enough are cut in two.

    Args:
        hashes: (examples,) equal for equal examples.
        sizes: (examples,) in bytes.
        may_cut: whether examples may be cut in two.
    """
    text, texts = number_texts(hashes)
    lengths = np.empty(texts, dtype=np.int64)
    lengths[text] = sizes
    text_sizes = lengths if isinstance(text, slice) else lengths * np.bincount(text)
    total = int(sizes.sum())
    count = min(max(1, round(texts * share)), texts - 1)
    chosen = np.zeros(texts, dtype=bool)
    chosen[random.Random(seed).sample(range(texts), count)] = True
    can_be_cut = (lengths >= MIN_BYTES_TO_CUT) & may_cut
    is_few = texts < FEW_TEXTS or texts * share < 1
    is_near = _is_near(text_sizes[chosen].sum(), max(share, 1 / texts) * total, total)
    if is_near and not (is_few and can_be_cut.any()):
        return Split(np.flatnonzero(chosen[text]))
    cut = can_be_cut & (is_few | (text_sizes > min(share, 1 - share) * total))
    chosen = _choose_by_size(np.where(cut, 0, text_sizes), share, seed, at_least_one=not cut.any())
    return Split(np.flatnonzero(chosen[text]), np.flatnonzero(cut[text]))


def _is_near(held_out: float, expected: float, total: int) -> bool:
    """Whether the held-out size is within a factor of two of the expected one, and enough is left for training."""
    return expected / 2 <= held_out <= expected * 2 and total - held_out >= (total - expected) / 2


def number_texts(hashes: np.ndarray) -> tuple[np.ndarray | slice, int]:
    """Number the different texts, in the order of their first examples.

    Args:
        hashes: (examples,) equal for equal examples.

    Returns:
        (examples,) the number of each example's text; if all differ, a slice of everything, which needs less memory.
        The number of texts.
    """
    ordered = np.sort(hashes)  # np.unique takes twenty times as long for many millions
    if (ordered[1:] != ordered[:-1]).all():
        return slice(None), len(hashes)
    del ordered
    order = np.argsort(hashes, kind="stable")
    is_first = np.r_[True, np.diff(hashes[order]) != 0]
    by_place = np.argsort(order[is_first])  # the hashes differ between processes, the order of first examples does not
    rank = np.empty(len(by_place), dtype=np.int64)
    rank[by_place] = np.arange(len(by_place))
    text = np.empty(len(hashes), dtype=np.int64)
    text[order] = rank[np.cumsum(is_first) - 1]
    return text, len(by_place)


def _choose_by_size(sizes: np.ndarray, share: float, seed: int, at_least_one: bool) -> np.ndarray:
    """Choose texts in random order, each if it brings the sum nearer to the share; never all.

    Args:
        sizes: (texts,) in bytes; those of size 0 are never chosen.

    Returns:
        (texts,) bool
    """
    total = int(sizes.sum())
    chosen, missing = np.zeros(len(sizes), dtype=bool), share * total
    candidates = np.flatnonzero(sizes)
    smallest = sizes[candidates].min(initial=total)
    keys = np.frombuffer(random.Random(seed).randbytes(8 * len(candidates)), dtype="<u8")
    for text in candidates[np.argsort(keys, kind="stable")][1:]:
        if smallest >= 2 * missing:
            break
        if sizes[text] < 2 * missing:
            chosen[text] = True
            missing -= sizes[text]
    if at_least_one and not chosen.any() and len(candidates) > 1:
        chosen[candidates[np.argmin(sizes[candidates])]] = True
    return chosen


def held_out_lengths(lengths: np.ndarray, hashes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return how many tokens to hold out at the end of each example that is cut in two: `share` of them in all.

    Long examples contribute in proportion to their length. Short ones contribute one end of about `END_TOKENS` or
    nothing, at random. Copies of an example contribute the same.

    Args:
        lengths: (examples,) in tokens that carry loss.
        hashes: (examples,) equal for equal examples.

    Returns:
        (examples,) int64
    """
    text, texts = number_texts(hashes)
    text_lengths = np.empty(texts, dtype=np.int64)
    text_lengths[text] = lengths
    cumulated = np.cumsum(text_lengths)
    wanted = max(share * cumulated[-1], MIN_TOKENS)
    ends = max(1, int(wanted) // END_TOKENS)
    edges = np.floor(cumulated / cumulated[-1] * ends + random.Random(seed).random())
    per_text = np.round(np.diff(edges, prepend=0) * wanted / ends).astype(np.int64)
    result: np.ndarray = np.clip(per_text[text], 0, np.maximum(lengths - 2, 0))
    return result
