"""Filters: pure functions on logits, (B, V) -> (B, V).

None of them changes its input, and each leaves at least one token alive. They are applied in the order in which
they stand here, which is the order of transformers: repetition first, then temperature, top-k, top-p.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BANNED = -torch.inf


def no_repeat_ngram(logits: Tensor, histories: Sequence[Sequence[int]], size: int) -> Tensor:
    """Ban each token that would repeat an n-gram of the row (Paulus et al. 2017, "A Deep Reinforced Model...").

    Args:
        histories: the ids of each row so far.
        size: the n of the n-gram; 1 forbids every token to come twice.
    """
    logits = logits.clone()
    for row, history in enumerate(histories):
        banned = _completions(history, size)
        if banned and len(banned) < logits.shape[1]:
            logits[row, banned] = BANNED
    return logits


def _completions(history: Sequence[int], size: int) -> list[int]:
    """The tokens that followed earlier occurrences of the last `size - 1` ids."""
    stem = list(history[len(history) - size + 1 :]) if size > 1 else []
    starts = range(len(history) - size + 1)
    return sorted({history[i + size - 1] for i in starts if list(history[i : i + size - 1]) == stem})


def temperature(logits: Tensor, value: float) -> Tensor:
    """Divide by the temperature: below 1 the distribution grows sharper, above 1 flatter (Ackley et al. 1985)."""
    return logits / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k most probable tokens, and those equal to the last of them (Fan et al. 2018).

    A k over the vocabulary keeps everything.
    """
    least = logits.topk(min(k, logits.shape[1]), dim=1).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < least, BANNED)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most probable tokens that holds probability p: the nucleus (Holtzman et al. 2020).

    The most probable token stays whatever p is.
    """
    ascending, order = logits.sort(dim=1)
    mass_up_to = ascending.softmax(dim=1).cumsum(dim=1)
    outside = mass_up_to <= 1 - p
    outside[:, -1] = False
    return logits.masked_fill(outside.scatter(1, order, outside), BANNED)
