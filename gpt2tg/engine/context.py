"""What every context promises: the KV cache of the sequences that are being generated. Shapes as in model.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpt2tg.engine.model import GPT2


class Context(ABC):
    """A KV cache for a batch of sequences, one row each. Rows may have unequal lengths."""

    is_exact = False
    """Whether `extend` gives the same logits, to the last bit, as `step` with one token after the other."""

    def __init__(self, model: GPT2, capacity: int, keep_hidden: bool = False) -> None:
        """
        Args:
            capacity: tokens that a row can hold.
            keep_hidden: whether `hidden` will be called.

        Raises:
            ValueError: the capacity exceeds the model's context length.
        """
        if capacity > model.shape.n_positions:
            raise ValueError(f"{capacity} tokens asked for, but the model has {model.shape.n_positions} positions")
        self._model = model
        self.capacity = capacity
        self._ids: list[list[int]] = []  # the tokens of each row
        self._keep_hidden = keep_hidden
        self._hidden: list[Tensor] = []

    @property
    def lengths(self) -> list[int]:
        """The number of tokens in each row."""
        return [len(ids) for ids in self._ids]

    def hidden(self) -> list[Tensor]:
        """Return, for each row, the final hidden states (T, W) of the tokens that the last `start`,
        `read` or `step` read."""
        return self._hidden

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Prefill an empty cache with prompts, a row each, and forget what it held before.

        Args:
            prompts: token ids, none of them empty.

        Returns:
            (B, V) logits of the next token.
        """
        self._ids = [[] for _ in prompts]  # first, so that no row is left half-read if this is interrupted
        self._allocate(len(prompts))
        return self.read(dict(enumerate(prompts)))

    @abstractmethod
    def _allocate(self, rows: int) -> None:
        """Allocate the cache for so many rows."""

    @abstractmethod
    def read(self, texts: Mapping[int, Sequence[int]]) -> Tensor:
        """Prefill some rows anew, in place of what they held; the other rows stay as they are.

        Args:
            texts: token ids by row, none of them empty.

        Returns:
            (B, V) logits of the next token, of these rows alone.
        """

    @abstractmethod
    def step(self, tokens: Tensor) -> Tensor:
        """Run a decode step: append a token to every row.

        Args:
            tokens: (B,) ids.

        Returns:
            (B, V) logits of the next token.
        """

    @abstractmethod
    def extend(self, tokens: Mapping[int, Sequence[int]], every: bool = True) -> Tensor:
        """Append T tokens to some rows, in one forward pass where that is possible.

        Args:
            tokens: ids by row, none of them empty.
            every: whether the logits after each token are wanted; else only those after the last one of each row.

        Returns:
            (T, V) logits of the token after each, row by row; or (B, V) of these B rows.
        """

    def take_back(self, counts: Sequence[int]) -> None:
        """Drop the last tokens of the rows, so many of each: only tokens that no other row shares."""
        for ids, count in zip(self._ids, counts, strict=True):
            del ids[len(ids) - count :]

    @abstractmethod
    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order. A row may be named more than once; one that is not named is dropped."""
