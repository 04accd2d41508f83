"""Tokens in an Arrow file, memory-mapped: a row for each piece of text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow

# The name of the dataset, and its only split: our own split is made of blocks, later.
DATASET, SPLIT = "tokens", "train"

# Its Arrow file, named as `datasets` does, in a directory named by what the tokens were made from.
TOKENS_FILE = f"{DATASET}-{SPLIT}.arrow"

# Its columns: the ids of a piece, whether an example ends with it, whether its tokens carry loss.
IDS, ENDS, LEARNED = "ids", "ends", "learned"


class MappedIds:
    """(N,) the ids of all pieces, in the memory-mapped record batches of an Arrow file.

    A slice within one record batch is a view of the file; only a slice across a border is copied.
    """

    def __init__(self, chunks: Sequence[np.ndarray], dtype: np.dtype) -> None:
        """chunks: the ids of each record batch, in order."""
        self.dtype = dtype
        self._chunks = chunks
        self._edges = np.cumsum([0, *map(len, chunks)]).tolist()  # a list: bisect on an array is slow

    @property
    def nbytes(self) -> int:
        """Size of the ids in bytes."""
        return len(self) * self.dtype.itemsize

    def __len__(self) -> int:
        return int(self._edges[-1])

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, step = span.indices(len(self))
        if stop <= start:
            return np.empty(0, self.dtype)
        first, last = bisect_right(self._edges, start) - 1, bisect_right(self._edges, stop - 1) - 1
        begin = self._edges[first]
        if first == last:
            return self._chunks[first][start - begin : stop - begin : step]
        joined = np.concatenate(self._chunks[first : last + 1])
        return joined[start - begin : stop - begin : step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        joined = self[:]
        return joined if dtype is None else joined.astype(dtype)


class LearnedFlags:
    """(N,) bool: whether an id carries loss. Held as a flag for each piece, expanded where it is asked for."""

    def __init__(self, piece_ends: np.ndarray, learned: np.ndarray) -> None:
        """piece_ends: (pieces,) where in the ids each piece ends; learned: (pieces,) bool."""
        self._ends, self._learned = piece_ends, learned

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, place: int) -> bool: ...

    @overload
    def __getitem__(self, place: slice) -> np.ndarray: ...

    def __getitem__(self, place: int | slice) -> bool | np.ndarray:
        if isinstance(place, int):
            number = range(len(self))[place]
            return bool(self[number : number + 1][0])
        start, stop, step = place.indices(len(self))
        if stop <= start:
            return np.empty(0, bool)
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, stop, side="left")) + 1
        edges = np.clip(self._ends[first:last], start, stop)
        return np.repeat(self._learned[first:last], np.diff(edges, prepend=start))[::step]


@dataclass(frozen=True)
class Tokens:
    """The ids of all examples, one after the other, each example followed by the end-of-text token.

    Only the path is pickled: the workers of a data loader map the file themselves.
    """

    ids: MappedIds
    learned: LearnedFlags | None  # None if all ids carry loss
    ends: np.ndarray  # (examples,) int64: where in `ids` each example ends
    fingerprint: str
    directory: Path
    lease: object = field(default=None, repr=False, compare=False)  # while it exists, the cache keeps the file

    @property
    def starts(self) -> np.ndarray:
        """(examples,) where in `ids` each example starts."""
        return np.concatenate([[0], self.ends[:-1]])

    def __reduce__(self) -> tuple[object, ...]:
        return open_tokens, (self.directory, self.fingerprint)


def open_tokens(directory: Path, fingerprint: str, lease: object = None) -> Tokens:
    """Memory-map the tokens in a directory of the cache.

    Args:
        fingerprint: a hash of everything that the tokens depend on.
        lease: kept as long as the tokens.
    """
    with pyarrow.memory_map(str(directory / TOKENS_FILE)) as file, pyarrow.ipc.open_stream(file) as reader:
        table = reader.read_all()  # a chunk for each record batch
    chunks = table.column(IDS).chunks
    lengths = np.concatenate([np.empty(0, np.int32), *(np.diff(chunk.offsets.to_numpy()) for chunk in chunks)])
    piece_ends = np.cumsum(lengths, dtype=np.int64)
    ends, learned = (table.column(name).to_numpy() for name in (ENDS, LEARNED))
    dtype = np.dtype(table.schema.field(IDS).type.value_type.to_pandas_dtype())
    return Tokens(
        ids=MappedIds([chunk.values.to_numpy() for chunk in chunks], dtype),
        learned=None if learned.all() else LearnedFlags(piece_ends, learned),
        ends=piece_ends if ends.all() else piece_ends[ends],  # without a copy, if each piece is an example
        fingerprint=fingerprint,
        directory=directory,
        lease=lease,
    )
