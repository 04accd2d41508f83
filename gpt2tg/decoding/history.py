"""The token ids of a growing text, with token counts and n-grams that are updated incrementally.

The cost per step of a filter that looks at the text is therefore independent of the length of the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# The first n - 1 tokens of an n-gram -> the tokens that followed them.
Layer = dict[tuple[int, ...], tuple[int, ...]]


class History(list[int]):
    """A list of token ids that caches its token counts and n-grams. Only ever append to it."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        super().__init__(ids)
        self._counts: dict[int | None, tuple[Tensor, int]] = {}  # by window: counts, and the number of ids in them
        self._ngrams: dict[int, Ngrams] = {}  # by size

    @classmethod
    def of(cls, ids: Sequence[int]) -> History:
        """Return `ids` itself if it is a history, else a new history of these ids."""
        return ids if isinstance(ids, cls) else cls(ids)

    def continued(self, token: int) -> History:
        """Return a copy with one more token. Beam search needs it when one beam continues in several ways."""
        copy = History(self)
        copy.append(token)
        copy._counts = {window: (counts.clone(), included) for window, (counts, included) in self._counts.items()}
        copy._ngrams = {size: ngrams.copy() for size, ngrams in self._ngrams.items()}
        return copy

    def counts(self, vocabulary: int, device: torch.device, window: int | None = None) -> Tensor:
        """Return how often each token occurs in the ids, or in the last `window` of them. (V,) float32

        The next call updates the returned tensor in place.
        """
        if window not in self._counts:
            self._counts[window] = torch.zeros(vocabulary, device=device), 0
        counts, included = self._counts[window]
        if included < len(self):
            added, removed = self[included:], list[int]()
            if window is not None:
                removed = self[max(0, included - window) : max(0, len(self) - window)]
            signs = torch.tensor([1.0] * len(added) + [-1.0] * len(removed), device=device)
            # Sums of ones are exact, so the order of the additions does not matter.
            counts.index_put_((torch.tensor(added + removed, device=device),), signs, accumulate=True)
            self._counts[window] = counts, len(self)
        return counts

    def followers(self, size: int) -> list[int]:
        """Return the tokens that followed earlier occurrences of the last `size - 1` ids. `size` is at least 2."""
        if len(self) < size:
            return []
        ngrams = self._ngrams.setdefault(size, Ngrams(size))
        ngrams.update(self)
        return ngrams.followers(tuple(self[1 - size :]))


class Ngrams:
    """The n-grams of a text, in layers that are never changed, so that copies can share them.

    A new n-gram starts a layer of its own; layers of similar size are merged, as in a log-structured merge tree. A
    text of T tokens has O(log T) layers, and each n-gram is merged O(log T) times.
    """

    def __init__(self, size: int, layers: Sequence[Layer] = (), included: int = 0) -> None:
        self._size = size
        self._layers = list(layers)  # the largest first
        self._included = included  # the number of ids whose n-grams are in the layers

    def copy(self) -> Ngrams:
        """Return a copy that can be updated independently."""
        return Ngrams(self._size, self._layers, self._included)

    def update(self, ids: Sequence[int]) -> None:
        """Add the n-grams that end in ids appended since the last call."""
        found: dict[tuple[int, ...], dict[int, None]] = {}  # a dict as an ordered set
        for end in range(max(self._included, self._size - 1), len(ids)):
            found.setdefault(tuple(ids[end - self._size + 1 : end]), {})[ids[end]] = None
        self._included = len(ids)
        layer: Layer = {stem: tuple(tokens) for stem, tokens in found.items()}
        while layer and self._layers and len(self._layers[-1]) <= len(layer):
            layer = _merged(self._layers.pop(), layer)
        if layer:
            self._layers.append(layer)

    def followers(self, stem: tuple[int, ...]) -> list[int]:
        """Return the tokens that followed these n - 1 tokens."""
        return [token for layer in self._layers for token in layer.get(stem, ())]


def _merged(older: Layer, newer: Layer) -> Layer:
    both = dict(older)
    for stem, tokens in newer.items():
        both[stem] = tuple(dict.fromkeys((*both.get(stem, ()), *tokens)))
    return both
