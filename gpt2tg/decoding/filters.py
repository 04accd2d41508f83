"""Filters: functions on logits, (B, V) -> (B, V), that make some tokens more probable and others less, or ban them.

None of them changes its input. They are applied in the order in which they
stand here. The order changes results, so there is one: that of transformers. Penalties and bans, which look at the
text so far, come first, and may ban every token there is; then what shapes the distribution itself, and keeps at least
one token: temperature, top-k, top-p, min-p, typical-p.

Filters that look at the ids of a row take any sequence, and count a plain one anew; a `History` remembers.

Those that are drawn from in beam search take `keep`, the least number of tokens to leave alive: with a single one
left, and that the end of the text, a beam could not go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gpt2tg.decoding.history import History
from gpt2tg.decoding.ordering import lowest

BANNED = -torch.inf


class Biases:
    """What to add to the logit of the last token of a sequence, grouped by the tokens before it: a word of white space
    is in thousands of tokens."""

    def __init__(self, biases: Mapping[tuple[int, ...], float]) -> None:
        groups: dict[tuple[int, ...], list[tuple[int, float]]] = {}
        for (*stem, last), bias in biases.items():
            groups.setdefault(tuple(stem), []).append((last, bias))
        self.by_stem = {
            stem: (torch.tensor([last for last, _ in group]), torch.tensor([bias for _, bias in group]))
            for stem, group in groups.items()
        }
        """Stem -> last tokens (N,) and what to add to them (N,)."""


def sequence_bias(
    logits: Tensor, histories: Sequence[Sequence[int]], biases: Biases | Mapping[tuple[int, ...], float]
) -> Tensor:
    """Add to the logit of a token, or of the last token of a sequence wherever the row ends with the rest of it.

    Args:
        histories: the ids of each row so far.
        biases: what to add, by sequence of ids; minus infinity bans.
    """
    changed = logits.clone()
    found = biases if isinstance(biases, Biases) else Biases(biases)
    for row, history in enumerate(histories):
        for stem, (last, bias) in found.by_stem.items():
            if len(stem) <= len(history) and tuple(history[len(history) - len(stem) :]) == stem:
                changed[row, last.to(changed.device)] += bias.to(changed)
    return changed


def repetition_penalty(
    logits: Tensor, histories: Sequence[Sequence[int]], penalty: float, window: int | None
) -> Tensor:
    """Divide the positive and multiply the negative logits of tokens the row already holds (Keskar et al. 2019).

    Args:
        penalty: above 1 discourages what was said, below 1 encourages it.
        window: how many of the last tokens count; None is all of them.
    """
    seen = _counts(logits, histories, window) > 0  # (B, V)
    return logits.where(~seen, torch.where(logits < 0, logits * penalty, logits / penalty))


def presence_and_frequency(
    logits: Tensor, histories: Sequence[Sequence[int]], presence: float, frequency: float, window: int | None
) -> Tensor:
    """Subtract `presence` once, and `frequency` as often as the row holds the token (OpenAI's API, 2021).

    Args:
        window: how many of the last tokens count; None is all of them.
    """
    counts = _counts(logits, histories, window)
    return logits - presence * (counts > 0) - frequency * counts


def _counts(logits: Tensor, histories: Sequence[Sequence[int]], window: int | None) -> Tensor:
    """How often each row holds each token. (B, V)"""
    rows = [History.of(history).counts(logits.shape[1], logits.device, window) for history in histories]
    return torch.stack(rows).to(logits.dtype)


def no_repeat_ngram(logits: Tensor, histories: Sequence[Sequence[int]], size: int) -> Tensor:
    """Ban each token that would repeat an n-gram of the row (Paulus et al. 2017).

    Args:
        size: the n of the n-gram; 1 forbids every token to come twice.
    """
    if size == 1:
        return logits.masked_fill(_counts(logits, histories, None) > 0, BANNED)
    followers = [History.of(history).followers(size) for history in histories]
    rows = [row for row, tokens in enumerate(followers) for _ in tokens]
    changed = logits.clone()
    changed[rows, [token for tokens in followers for token in tokens]] = BANNED
    return changed


def ban(logits: Tensor, rows: Iterable[int], tokens: Sequence[int]) -> Tensor:
    """Ban tokens in some of the rows: the end of the text, while it is too early for it."""
    changed = logits.clone()
    for row in rows:
        for token in tokens:  # few
            changed[row, token] = BANNED
    return changed


def without(logits: Tensor, banned: Tensor) -> Tensor:
    """Ban tokens everywhere. `banned` is (V,), of truth values, on the device of the logits."""
    return logits.masked_fill(banned, BANNED)


def temperature(logits: Tensor, value: float) -> Tensor:
    """Divide by the temperature: below 1 the distribution grows sharper, above 1 flatter (Ackley et al. 1985)."""
    return logits / value


def top_k(logits: Tensor, k: int, keep: int = 1) -> Tensor:
    """Keep the k most probable tokens, and those equal to the last of them (Fan et al. 2018).

    A k over the vocabulary keeps everything.
    """
    least = logits.topk(min(max(k, keep), logits.shape[1]), dim=1).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < least, BANNED)


def top_p(logits: Tensor, p: float, keep: int = 1) -> Tensor:
    """Keep the smallest set of most probable tokens that holds probability p: the nucleus (Holtzman et al. 2020).

    With p = 0 only the most probable is left, with p = 1 everything.
    """

    def outside(ascending: Tensor) -> Tensor:
        outside = ascending.softmax(dim=1).cumsum(dim=1) <= 1 - p
        outside[:, -keep:] = False
        return outside

    return logits.masked_fill(lowest(logits, outside), BANNED)


def min_p(logits: Tensor, p: float, keep: int = 1) -> Tensor:
    """Keep tokens at least p times as probable as the most probable one (Nguyen et al. 2024)."""
    probabilities = logits.softmax(dim=1)
    outside = probabilities < p * probabilities.amax(dim=1, keepdim=True)
    outside.scatter_(1, probabilities.topk(min(keep, logits.shape[1]), dim=1).indices, False)
    return logits.masked_fill(outside, BANNED)


def typical_p(logits: Tensor, p: float, keep: int = 1) -> Tensor:
    """Keep the tokens whose surprise is nearest to the expected one, until they hold p (Meister et al. 2023)."""
    logprobs = logits.log_softmax(dim=1)
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).nansum(dim=1, keepdim=True)  # 0 * log 0 counts as 0
    distance, order = (-logprobs - entropy).abs().sort(dim=1)
    before = (probabilities.gather(1, order).cumsum(dim=1) < p).sum(dim=1, keepdim=True)
    farthest = distance.gather(1, before.clamp(max=logits.shape[1] - 1))
    outside = distance > farthest
    outside[:, :keep] = False
    return logits.masked_fill(outside.scatter(1, order, outside), BANNED)
