"""Datasets of blocks: rows of token ids for the model, cut from the token cache when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset

from gpt2tg.training.data.tokens import LearnedFlags, Tokens

# Labels with this value carry no loss, by the convention of torch's cross_entropy and transformers.
NO_LOSS = -100

# Processed at a time where all tokens, or all block numbers, would take too much memory.
CHUNK_TOKENS = 1 << 24
CHUNK_BLOCKS = 1 << 14

# The tensors of one block: `input_ids`, and `labels` and `position_ids` where they differ from the default.
BlockRow = dict[str, np.ndarray]


class Blocks(Dataset[BlockRow]):
    """Blocks made of spans of the tokens, each of at most the block size.

    With `restart`, every span is an example of its own: its positions start at 0, and its first token has no context,
    so it carries no loss.
    """

    def __init__(self, tokens: Tokens, starts: np.ndarray, ends: np.ndarray, first: np.ndarray, restart: bool) -> None:
        """starts, ends: (spans,) in the tokens; first: (blocks + 1,) the first span of each block."""
        self.tokens = tokens
        self._starts, self._ends, self._first, self._restart = starts, ends, first, restart

    @property
    def lengths(self) -> np.ndarray:
        """(blocks,) in tokens."""
        return np.add.reduceat(self._ends - self._starts, self._first[:-1])

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides what the blocks contain."""
        digest = hashlib.sha256(repr((self.tokens.fingerprint, self._restart)).encode())
        for array in (self._starts, self._ends, self._first):
            digest.update(np.ascontiguousarray(array, dtype="<i8").data)
        return digest.hexdigest()[:32]

    def have_loss(self, learned: LearnedFlags) -> np.ndarray:
        """Return for each block whether any of its tokens carries loss. (blocks,) bool

        Args:
            learned: (N,) bool, for each token. The first token of a block never carries loss.
        """
        firsts = self._starts.copy()  # the first token of each span that may carry loss
        if self._restart:
            firsts += 1
        else:
            firsts[self._first[:-1]] += 1
        run_starts, run_ends = _runs(learned)
        run = np.searchsorted(run_ends, firsts, side="right")  # the first run that ends after it
        next_learned = np.maximum(np.append(run_starts, len(learned))[run], firsts)
        return np.logical_or.reduceat(next_learned < self._ends, self._first[:-1])

    def select(self, kept: np.ndarray) -> Blocks:
        """Return some of the blocks. kept: (blocks,) bool"""
        sizes = np.diff(self._first)
        spans = np.repeat(kept, sizes)
        first = np.r_[0, np.cumsum(sizes[kept])]
        return Blocks(self.tokens, self._starts[spans], self._ends[spans], first, self._restart)

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, index: int) -> BlockRow:
        if not 0 <= index < len(self):
            raise IndexError(index)
        spans = [slice(self._starts[i], self._ends[i]) for i in range(self._first[index], self._first[index + 1])]
        row = {"input_ids": np.concatenate([self.tokens.ids[span] for span in spans]).astype(np.int64)}
        if self._restart:
            row["position_ids"] = np.concatenate([np.arange(span.stop - span.start) for span in spans])
        if self._restart or self.tokens.learned is not None:
            row["labels"] = self._labels(row, spans)
        return row

    def _labels(self, row: BlockRow, spans: list[slice]) -> np.ndarray:
        learned = np.ones(len(row["input_ids"]), dtype=bool)
        if self.tokens.learned is not None:
            learned = np.concatenate([self.tokens.learned[span] for span in spans])
        if self._restart:
            learned &= row["position_ids"] > 0
        return np.where(learned, row["input_ids"], NO_LOSS)


class BlockRange(Dataset[BlockRow]):
    """Consecutive blocks of a dataset."""

    def __init__(self, blocks: Blocks, numbers: range) -> None:
        self._blocks, self._numbers = blocks, numbers

    @property
    def lengths(self) -> np.ndarray:
        """(blocks,) in tokens."""
        return self._blocks.lengths[self._numbers.start : self._numbers.stop]

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides what the blocks contain, equal to that of earlier versions."""
        digest = hashlib.sha256()
        for part in _repr_in_chunks(self._blocks.fingerprint, self._numbers):
            digest.update(part.encode())
        return digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> BlockRow:
        return self._blocks[self._numbers[index]]


def _runs(learned: LearnedFlags) -> tuple[np.ndarray, np.ndarray]:
    """Return where runs of tokens that carry loss start and end. Works in chunks: the array may be gigabytes."""
    chunks = range(0, len(learned), CHUNK_TOKENS)
    changes = [start + 1 + np.flatnonzero(np.diff(learned[start : start + CHUNK_TOKENS + 1])) for start in chunks]
    edges = np.concatenate([[0] if learned[0] else [], *changes, [len(learned)] if learned[-1] else []]).astype(int)
    return edges[::2], edges[1::2]


def _repr_in_chunks(name: str, numbers: range) -> Iterator[str]:
    """Yield repr((name, list(numbers))) without making the list: it takes a gigabyte for the blocks of a large text."""
    yield f"({name!r}, ["
    for start in range(numbers.start, numbers.stop, CHUNK_BLOCKS):
        chunk = range(start, min(start + CHUNK_BLOCKS, numbers.stop))
        yield (", " if start > numbers.start else "") + ", ".join(map(str, chunk))
    yield "])"
