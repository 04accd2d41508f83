"""Rows that join and leave a batch between two forward passes, for continuous batching. Shapes as in model.py.

A pool has a fixed number of rows. Each has the length of its own text, and the caller says in every pass which rows
read which tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.cpu.kernel_model import KernelModel
from gpt2tg.engine.model import GPT2


class RowPool(ABC):
    """The KV cache of up to `size` texts, each of which may have the model's full context length."""

    def __init__(self, model: GPT2, size: int) -> None:
        self.size = size
        self._model = model

    @abstractmethod
    def read(self, texts: Mapping[int, Sequence[int]], wanted: Iterable[int]) -> Tensor:
        """Append tokens to rows: a prompt or a part of one, or the token that was chosen last.

        Args:
            texts: token ids by row, none of them empty.
            wanted: the rows whose next token will be chosen, among those of `texts`.

        Returns:
            (W, V) logits of the next token of the wanted rows, in their order.

        Raises:
            IndexError: a row is full, or a token is outside the vocabulary.
        """

    @abstractmethod
    def clear(self, row: int) -> None:
        """Drop the tokens of a row."""

    @abstractmethod
    def share(self, source: int, row: int, count: int) -> int:
        """Let a row hold the first tokens of another one, or of itself, without computing them again.

        Returns:
            How many of the `count` tokens the row holds now. The caller reads the others.
        """

    @property
    @abstractmethod
    def tokens_per_pass(self) -> int | None:
        """The largest number of tokens of prompts to read in one pass, so that other rows need not wait long; None if
        a prompt must be read at once."""


class KernelPool(RowPool):
    """Rows of our CPU kernels. The logits of a row depend on its tokens alone, to the last bit.

    Memory is reserved for all rows, but pages that are never written to take none.
    """

    tokens_per_pass = 256

    def __init__(self, model: GPT2, kernel_model: KernelModel, size: int) -> None:
        super().__init__(model, size)
        self._kernel_model = kernel_model
        self._capacity = model.shape.n_positions
        self._cache = kernel_model.empty_cache(size, self._capacity)
        padded = kernel_model.padded(self._capacity)
        self._cache_rows = torch.arange(size, dtype=torch.int32)[:, None].repeat(1, padded)
        self._lengths = [0] * size

    @torch.inference_mode()
    def read(self, texts: Mapping[int, Sequence[int]], wanted: Iterable[int]) -> Tensor:
        """See `RowPool.read`."""
        ids = [token for text in texts.values() for token in text]
        positions = [self._lengths[row] + n for row, text in texts.items() for n in range(len(text))]
        if max(positions) >= self._capacity:
            raise IndexError(f"the cache holds {self._capacity} tokens a row, and a row is full")
        if min(ids) < 0 or max(ids) >= self._model.shape.vocab_size:
            raise IndexError(f"a token is outside the vocabulary of {self._model.shape.vocab_size}")
        rows = [row for row, text in texts.items() for _ in text]
        ends = dict(zip(texts, accumulate(map(len, texts.values())), strict=True))
        logits = self._kernel_model.forward(
            self._cache, ids, positions, self._cache_rows[rows], [ends[row] - 1 for row in wanted], None
        )
        for row, text in texts.items():
            self._lengths[row] += len(text)
        return logits

    def clear(self, row: int) -> None:
        """See `RowPool.clear`."""
        self._lengths[row] = 0

    def share(self, source: int, row: int, count: int) -> int:
        """See `RowPool.share`. Copies keys and values, which takes a small part of the time to compute them."""
        count = min(count, self._lengths[source])
        if row != source:
            tiles = self._kernel_model.tiles(self._cache)
            filled = -(-count // self._kernel_model.tile)
            tiles[:, :, row, :, :filled] = tiles[:, :, source, :, :filled]
        self._lengths[row] = count
        return count


class ContextPool(RowPool):
    """Rows of torch's contexts, for any device. Rows of the context are those in use, in the order of `_rows`."""

    tokens_per_pass = None

    def __init__(self, model: GPT2, size: int) -> None:
        super().__init__(model, size)
        self._context = new_context(model, model.shape.n_positions)
        self._rows: list[int] = []

    @torch.inference_mode()
    def read(self, texts: Mapping[int, Sequence[int]], wanted: Iterable[int]) -> Tensor:
        """See `RowPool.read`. Every row in use must read a token in every pass."""
        logits: dict[int, Tensor] = {}
        joining = [row for row in texts if row not in self._rows]
        if self._rows:
            stepped = self._context.step(torch.tensor([texts[row][0] for row in self._rows]))
            logits.update(zip(self._rows, stepped, strict=True))
        if joining:
            logits.update(zip(joining, self._join([texts[row] for row in joining]), strict=True))
            self._rows += joining
        return torch.stack([logits[row] for row in wanted])

    def _join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Prefill prompts in rows after the others. Returns (B, V) logits of these rows alone."""
        count = len(self._rows)
        if not count:
            return self._context.start(prompts)
        self._context.select([*range(count), *[0] * len(prompts)])  # the copies make room
        return self._context.read(dict(enumerate(prompts, start=count)))

    def clear(self, row: int) -> None:
        """See `RowPool.clear`."""
        if row in self._rows:
            place = self._rows.index(row)
            self._rows.remove(row)
            if self._rows:
                self._context.select([n for n in range(len(self._rows) + 1) if n != place])

    def share(self, source: int, row: int, count: int) -> int:
        """See `RowPool.share`. Nothing is shared: a GPU reads a prompt quickly."""
        return 0


def new_row_pool(model: GPT2, size: int) -> RowPool:
    """Return the empty pool of the kind that suits a model."""
    if model.kernel_model is not None:
        return KernelPool(model, model.kernel_model, size)
    return ContextPool(model, size)
