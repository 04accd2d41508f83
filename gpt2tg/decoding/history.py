"""What a text holds so far, kept up to date while it grows: a filter's question costs the same at any length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# The tokens that followed each stem: the n - 1 tokens that begin an n-gram.
Layer = dict[tuple[int, ...], tuple[int, ...]]


class History(list[int]):
    """The ids of a row, which remember what was asked about them. Ids are only ever appended."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        super().__init__(ids)
        self._counts: dict[int | None, tuple[Tensor, int]] = {}  # by window: counts, and how many ids they include
        self._ngrams: dict[int, Ngrams] = {}  # by size

    @classmethod
    def of(cls, ids: Sequence[int]) -> History:
        """Return the ids themselves if they remember, else a history that counts them anew."""
        return ids if isinstance(ids, cls) else cls(ids)

    def continued(self, token: int) -> History:
        """Return a copy with one more token; this one stays as it is. Beams part in this way."""
        copy = History(self)
        copy.append(token)
        copy._counts = {window: (counts.clone(), included) for window, (counts, included) in self._counts.items()}
        copy._ngrams = {size: ngrams.copy() for size, ngrams in self._ngrams.items()}
        return copy

    def counts(self, vocabulary: int, device: torch.device, window: int | None = None) -> Tensor:
        """Return how often each token stands among the ids, or among the last `window` of them. (V,) in 32 bits

        The tensor is updated in place by the next call.
        """
        if window not in self._counts:
            self._counts[window] = torch.zeros(vocabulary, device=device), 0
        counts, included = self._counts[window]
        if included < len(self):
            added, removed = self[included:], list[int]()
            if window is not None:
                removed = self[max(0, included - window) : max(0, len(self) - window)]
            signs = torch.tensor([1.0] * len(added) + [-1.0] * len(removed), device=device)
            # Sums of ones are exact in any order.
            counts.index_put_((torch.tensor(added + removed, device=device),), signs, accumulate=True)
            self._counts[window] = counts, len(self)
        return counts

    def followers(self, size: int) -> list[int]:
        """Return the tokens that followed earlier occurrences of the last `size - 1` ids; `size` is 2 or more."""
        if len(self) < size:
            return []
        ngrams = self._ngrams.setdefault(size, Ngrams(size))
        ngrams.update(self)
        return ngrams.followers(tuple(self[1 - size :]))


class Ngrams:
    """The n-grams of a text. Copies share them: no layer changes once it is made.

    A new n-gram is a layer of its own, and layers of about the same size are merged. So there are few of them, and an
    n-gram is merged about as often as the length of the text can be halved.
    """

    def __init__(self, size: int, layers: Sequence[Layer] = (), included: int = 0) -> None:
        self._size = size
        self._layers = list(layers)  # the largest first
        self._included = included  # ids whose n-grams are in the layers

    def copy(self) -> Ngrams:
        """Return n-grams that can grow apart from these."""
        return Ngrams(self._size, self._layers, self._included)

    def update(self, ids: Sequence[int]) -> None:
        """Add the n-grams that end in ids which were not there at the last call."""
        found: dict[tuple[int, ...], dict[int, None]] = {}  # a dict keeps the order, and no token twice
        for end in range(max(self._included, self._size - 1), len(ids)):
            found.setdefault(tuple(ids[end - self._size + 1 : end]), {})[ids[end]] = None
        self._included = len(ids)
        layer: Layer = {stem: tuple(tokens) for stem, tokens in found.items()}
        while layer and self._layers and len(self._layers[-1]) <= len(layer):
            layer = _merged(self._layers.pop(), layer)
        if layer:
            self._layers.append(layer)

    def followers(self, stem: tuple[int, ...]) -> list[int]:
        """Return the tokens that came after the stem."""
        return [token for layer in self._layers for token in layer.get(stem, ())]


def _merged(older: Layer, newer: Layer) -> Layer:
    both = dict(older)
    for stem, tokens in newer.items():
        both[stem] = tuple(dict.fromkeys((*both.get(stem, ()), *tokens)))
    return both
