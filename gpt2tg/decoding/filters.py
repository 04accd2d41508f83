"""Filters: pure functions on logits, (B, V) -> (B, V), that raise or lower the probability of tokens, or ban them.

A filter returns a new tensor and never changes its input. The order of filters changes results. They stand here in the
order of transformers, which `generation/filter_chain.py` applies: first the penalties and bans, which depend on the
text so far and may ban every token; then temperature, top-k, top-p, min-p and typical-p, which depend on the logits
alone and keep at least one token.

`histories` holds the ids of each row. Any sequence works; a `History` caches its counts between steps.

`keep` is the smallest number of tokens that a filter leaves. Beam search needs more than one: if only the end-of-text
token is left, a beam cannot continue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gpt2tg.decoding.history import History
from gpt2tg.decoding.ordering import lowest

BANNED = -torch.inf


class Biases:
    """Biases by token sequence, grouped by all tokens but the last.

    Groups are added with one operation each: a bias on white space applies to thousands of tokens.
    """

    def __init__(self, biases: Mapping[tuple[int, ...], float]) -> None:
        groups: dict[tuple[int, ...], list[tuple[int, float]]] = {}
        for (*stem, last), bias in biases.items():
            groups.setdefault(tuple(stem), []).append((last, bias))
        self.by_stem = {
            stem: (torch.tensor([last for last, _ in group]), torch.tensor([bias for _, bias in group]))
            for stem, group in groups.items()
        }
        """All tokens but the last -> the last tokens (N,) and their biases (N,)."""

    def after(self, stem: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the last tokens after a stem and their biases. They move to the device once: a copy is a host sync."""
        last, bias = self.by_stem[stem]
        if last.device != device:
            self.by_stem[stem] = last.to(device), bias.to(device)
        return self.by_stem[stem]


def sequence_bias(
    logits: Tensor, histories: Sequence[Sequence[int]], biases: Biases | Mapping[tuple[int, ...], float]
) -> Tensor:
    """Add a bias to the last token of each sequence whose other tokens are the last ones of the row.

    Args:
        biases: the bias of each sequence of ids. Minus infinity bans the token.
    """
    changed = logits.clone()
    found = biases if isinstance(biases, Biases) else Biases(biases)
    for row, history in enumerate(histories):
        for stem in found.by_stem:
            if len(stem) <= len(history) and tuple(history[len(history) - len(stem) :]) == stem:
                last, bias = found.after(stem, changed.device)
                changed[row, last] += bias.to(changed.dtype)
    return changed


def repetition_penalty(
    logits: Tensor, histories: Sequence[Sequence[int]], penalty: float, window: int | None
) -> Tensor:
    """Divide positive and multiply negative logits of tokens that occur in the row (Keskar et al. 2019).

    Args:
        penalty: above 1 discourages repetition, below 1 encourages it.
        window: look at the last `window` tokens of the row only; None looks at all.
    """
    seen = _counts(logits, histories, window) > 0  # (B, V)
    return logits.where(~seen, torch.where(logits < 0, logits * penalty, logits / penalty))


def presence_and_frequency(
    logits: Tensor, histories: Sequence[Sequence[int]], presence: float, frequency: float, window: int | None
) -> Tensor:
    """Subtract `presence` from tokens that occur in the row, and `frequency` per occurrence (OpenAI's API, 2021).

    Args:
        window: look at the last `window` tokens of the row only; None looks at all.
    """
    counts = _counts(logits, histories, window)
    return logits - presence * (counts > 0) - frequency * counts


def _counts(logits: Tensor, histories: Sequence[Sequence[int]], window: int | None) -> Tensor:
    """Return how often each token occurs in each row. (B, V)"""
    rows = [History.of(history).counts(logits.shape[1], logits.device, window) for history in histories]
    return torch.stack(rows).to(logits.dtype)


def no_repeat_ngram(logits: Tensor, histories: Sequence[Sequence[int]], size: int) -> Tensor:
    """Ban each token that would repeat an n-gram of the row (Paulus et al. 2017).

    Args:
        size: the n of the n-gram. 1 bans every token that occurs in the row.
    """
    if size == 1:
        return logits.masked_fill(_counts(logits, histories, None) > 0, BANNED)
    followers = [History.of(history).followers(size) for history in histories]
    rows = [row for row, tokens in enumerate(followers) for _ in tokens]
    changed = logits.clone()
    changed[rows, [token for tokens in followers for token in tokens]] = BANNED
    return changed


def ban(logits: Tensor, rows: Iterable[int], tokens: Sequence[int]) -> Tensor:
    """Ban tokens in some of the rows, such as the end-of-text token in rows that are still too short."""
    changed = logits.clone()
    for row in rows:
        for token in tokens:
            changed[row, token] = BANNED
    return changed


def without(logits: Tensor, banned: Tensor) -> Tensor:
    """Ban tokens in every row. `banned` is a (V,) boolean mask on the device of the logits."""
    return logits.masked_fill(banned, BANNED)


def temperature(logits: Tensor, value: float) -> Tensor:
    """Divide by the temperature: below 1 sharpens the distribution, above 1 flattens it (Ackley et al. 1985)."""
    return logits / value


def top_k(logits: Tensor, k: int, keep: int = 1) -> Tensor:
    """Keep the k most probable tokens, and all that tie with the last of them (Fan et al. 2018).

    A k larger than the vocabulary keeps everything.
    """
    least = logits.topk(min(max(k, keep), logits.shape[1]), dim=1).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < least, BANNED)


def top_p(logits: Tensor, p: float, keep: int = 1) -> Tensor:
    """Keep the nucleus: the smallest set of most probable tokens with total probability p (Holtzman et al. 2020).

    p = 0 keeps the most probable token, p = 1 everything.
    """

    def outside(ascending: Tensor) -> Tensor:
        outside = _running_sums(ascending.softmax(dim=1)) <= 1 - p
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
    """Keep the tokens whose surprise -log p is nearest to the entropy, until they hold probability p.

    Locally typical sampling (Meister et al. 2023).
    """
    logprobs = logits.log_softmax(dim=1)
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).nansum(dim=1, keepdim=True)  # 0 * log 0 is NaN here, and counts as 0
    distance, order = (-logprobs - entropy).abs().sort(dim=1)
    before = (_running_sums(probabilities.gather(1, order)) < p).sum(dim=1, keepdim=True)
    farthest = distance.gather(1, before.clamp(max=logits.shape[1] - 1))
    outside = distance > farthest
    outside[:, :keep] = False
    return logits.masked_fill(outside.scatter(1, order, outside), BANNED)


def _running_sums(probabilities: Tensor) -> Tensor:
    """Return the cumulative probabilities of each row, in float64. (B, V) -> (B, V)

    A CUDA GPU adds in no fixed order. In float32 that would move the limit between the tokens kept and banned from one
    run to the next. Apple's GPUs have no float64.
    """
    return probabilities.cumsum(dim=1, dtype=None if probabilities.device.type == "mps" else torch.float64)
