"""From tokens to blocks, as the model sees them, and from blocks to batches."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.sources import TextSource
from gpt2tg.training.data.split import ends_of
from gpt2tg.training.data.token_cache import Tokens, tokenize

# Labels with this value carry no loss (torch's cross entropy and transformers agree on it).
NO_LOSS = -100

# Looked at in one piece, where not all tokens are.
PART_TOKENS = 1 << 24
PART_BLOCKS = 1 << 14


@dataclass(frozen=True)
class TrainingData:
    """Blocks to learn from and blocks to measure on, each of at most `block_size` ids."""

    train: Dataset
    validation: Dataset | None
    train_examples: int
    validation_examples: int
    train_tokens: int
    validation_tokens: int
    block_size: int
    overlong: int  # examples that are longer than a block
    longest: int  # tokens of the longest example

    @property
    def padding(self) -> float:
        """Share of the training blocks that holds nothing."""
        return 1 - self.train_tokens / (len(self.train) * self.block_size)

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """Names of what the blocks hold: equal for equal text, split, tokenizer and packing, in whatever files."""
        validation = None if self.validation is None else _fingerprint(self.validation)
        return {"training": _fingerprint(self.train), "validation": validation}


def load_data(
    sources: tuple[TextSource, TextSource | None], tokenizer: TextTokenizer, options: TrainingOptions
) -> TrainingData:
    """Tokenise the text once and cut both sides of the split into blocks.

    Raises:
        UserError: there is nothing to learn.
        RunError: the tokens cannot be kept.
    """
    source, measured = sources
    tokens = tokenize(source.found, tokenizer)
    spans, measured_spans = split_spans(tokens, source, options), None
    train, validation = pack(tokens, *spans, options), None
    if measured is not None:
        others = tokens if measured.found is source.found else tokenize(measured.found, tokenizer)
        measured_spans = split_spans(others, measured, options)
        validation = pack(others, *measured_spans, options)
    elif options.validation_split and source.found.examples == 1 and len(train) > 1:  # its end is held out
        held_out = min(max(1, round(len(train) * options.validation_split)), len(train) - 1)
        border = len(train) - held_out
        train, validation = Subset(train, range(border)), Subset(train, range(border, len(train)))
    lengths = np.diff(tokens.ends, prepend=0)
    return TrainingData(
        train,
        validation,
        train_examples=source.count,
        validation_examples=int(validation is not None) if measured_spans is None else len(measured_spans[0]),
        train_tokens=_tokens_in(train),
        validation_tokens=0 if validation is None else _tokens_in(validation),
        block_size=options.block_size,
        overlong=int((lengths > options.block_size).sum()),
        longest=int(lengths.max()),
    )


def _tokens_in(blocks: Dataset) -> int:
    if isinstance(blocks, Subset):
        return int(blocks.dataset.lengths[_slice(blocks)].sum())
    return int(blocks.lengths.sum())


def _slice(blocks: Subset) -> slice:
    """Which of the blocks it takes: a stretch of them."""
    return slice(blocks.indices.start, blocks.indices.stop)


def split_spans(tokens: Tokens, source: TextSource, options: TrainingOptions) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends, in the tokens, of the examples on this side of the split; of parted ones, of its part."""
    starts, ends, chosen, parted = tokens.starts, tokens.ends, source.chosen, source.split.parted
    if len(parted):
        lengths = ends[parted] - _first_learned(tokens, starts[parted], ends[parted])
        hashes = source.found.hashes[parted]
        borders = ends.copy()
        borders[parted] -= ends_of(lengths, hashes, options.validation_split, options.seed)
        chosen[parted] = True
        starts, ends = (np.where(chosen, borders, starts), ends) if source.keep_held_out else (starts, borders)
        chosen &= starts < ends
    return starts[chosen], ends[chosen]


def _first_learned(tokens: Tokens, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(examples,) where in the tokens each example's completion starts, or it itself."""
    if tokens.learned is None:
        return starts
    both = zip(starts, ends, strict=True)
    return np.array([start + np.argmax(tokens.learned[start:end]) for start, end in both])


def pack(tokens: Tokens, starts: np.ndarray, ends: np.ndarray, options: TrainingOptions) -> Blocks:
    """Blocks of `block_size` ids from stretches of the tokens; nothing that can be learned is dropped.

    Args:
        starts, ends: (examples,) in the tokens.

    Raises:
        UserError: there is nothing to learn.
    """
    if options.no_cross_examples:
        spans = fill(*segments(starts, ends, options.block_size), options.block_size)
    else:
        spans = cut(starts, ends, options.block_size)
    return _require_loss(Blocks(tokens, *spans, restart=options.no_cross_examples))


class Blocks(Dataset):
    """Rows for the model: `input_ids`, and `labels` and `position_ids` where they are not the plain ones.

    A block is made of spans of the tokens; with `restart`, each span is on its own: positions start anew, and what its
    first token is can be told from nothing.
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
        """Names what the blocks hold."""
        digest = hashlib.sha256(repr((self.tokens.fingerprint, self._restart)).encode())
        for array in (self._starts, self._ends, self._first):
            digest.update(np.ascontiguousarray(array, dtype="<i8"))
        return digest.hexdigest()[:32]

    def learns(self, learned: np.ndarray) -> np.ndarray:
        """(blocks,) bool: whether a token of a block carries loss; the first of a block never does."""
        firsts = self._starts.copy()  # the first token of each span from which loss may come
        if self._restart:
            firsts += 1
        else:
            firsts[self._first[:-1]] += 1
        run_starts, run_ends = _runs(learned)
        run = np.searchsorted(run_ends, firsts, side="right")  # the run that ends first after it
        next_learned = np.maximum(np.append(run_starts, len(learned))[run], firsts)
        return np.logical_or.reduceat(next_learned < self._ends, self._first[:-1])

    def only(self, kept: np.ndarray) -> Blocks:
        """Some of the blocks. kept: (blocks,) bool"""
        sizes = np.diff(self._first)
        spans = np.repeat(kept, sizes)
        first = np.r_[0, np.cumsum(sizes[kept])]
        return Blocks(self.tokens, self._starts[spans], self._ends[spans], first, self._restart)

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        block = range(self._first[index], self._first[index + 1])
        spans = [slice(self._starts[i], self._ends[i]) for i in block]
        row = {"input_ids": np.concatenate([self.tokens.ids[span] for span in spans]).astype(np.int64)}
        if self._restart:
            row["position_ids"] = np.concatenate([np.arange(span.stop - span.start) for span in spans])
        if self._restart or self.tokens.learned is not None:
            row["labels"] = self._labels(row, spans)
        return row

    def _labels(self, row: dict[str, np.ndarray], spans: list[slice]) -> np.ndarray:
        learned = np.ones(len(row["input_ids"]), dtype=bool)
        if self.tokens.learned is not None:
            learned = np.concatenate([self.tokens.learned[span] for span in spans])
        if self._restart:
            learned &= row["position_ids"] > 0
        return np.where(learned, row["input_ids"], NO_LOSS)


def _runs(learned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where stretches of tokens that carry loss start and end, looked for a part at a time: all may be gigabytes."""
    parts = range(0, len(learned), PART_TOKENS)
    changes = [start + 1 + np.flatnonzero(np.diff(learned[start : start + PART_TOKENS + 1])) for start in parts]
    edges = np.concatenate([[0] if learned[0] else [], *changes, [len(learned)] if learned[-1] else []]).astype(int)
    return edges[::2], edges[1::2]


def cut(starts: np.ndarray, ends: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut the chosen examples, one after the other, every `block_size` tokens.

    All blocks are full but the last, which holds the rest; where the rest would be a single token, from which
    nothing can be told, the last two share what is left.

    Args:
        starts, ends: (examples,) in the tokens.

    Returns:
        starts, ends: (spans,) stretches that lie together, both in the tokens and in a block.
        first: (blocks + 1,) the first span of each block.
    """
    gaps = starts[1:] != ends[:-1]
    run_starts, run_ends = starts[np.r_[True, gaps]], ends[np.r_[gaps, True]]
    run_edges = np.r_[0, np.cumsum(run_ends - run_starts)]  # counted in tokens of the chosen examples
    total = run_edges[-1]
    block_edges = np.r_[np.arange(0, total, block_size), total]
    if total > block_size and total % block_size == 1:
        block_edges[-2] -= 1
    edges = np.union1d(run_edges, block_edges)
    run = np.searchsorted(run_edges, edges[:-1], side="right") - 1
    span_starts = run_starts[run] + edges[:-1] - run_edges[run]
    return span_starts, span_starts + np.diff(edges), np.searchsorted(edges, block_edges)


def segments(starts: np.ndarray, ends: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples that are longer than a block in several spans, none of them a single token; the others as they are."""
    lengths = ends - starts
    parts = -(-lengths // block_size)
    last = np.cumsum(parts) - 1
    number = np.arange(parts.sum()) - np.repeat(last - parts + 1, parts)  # of the part in its example
    part_starts = np.repeat(starts, parts) + number * block_size
    part_ends = np.minimum(part_starts + block_size, np.repeat(ends, parts))
    short = last[(lengths > block_size) & (lengths % block_size == 1)]
    part_starts[short] -= 1
    part_ends[short - 1] -= 1
    return part_starts, part_ends


def fill(starts: np.ndarray, ends: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put spans together to blocks without cutting any, the longest that fits first: little room is left over.

    Returns:
        starts, ends: (spans,) in the order of the blocks; first: (blocks + 1,) the first span of each block.
    """
    lengths = ends - starts
    by_length = np.argsort(lengths, kind="stable")
    left = np.bincount(lengths, minlength=block_size + 1).tolist()
    taken = (np.cumsum(left) - left).tolist()  # where in `by_length` the next span of a length is
    there = [length for length, count in enumerate(left) if count]  # lengths of which some are left, ascending
    order, first = [], [0]
    while there:
        room = block_size
        while fitting := bisect_right(there, room):
            length = there[fitting - 1]
            order.append(taken[length])
            taken[length] += 1
            left[length] -= 1
            room -= length
            if not left[length]:
                del there[fitting - 1]
        first.append(len(order))
    spans = by_length[order]
    return starts[spans], ends[spans], np.array(first)


def _fingerprint(blocks: Dataset) -> str:
    if isinstance(blocks, Subset):
        digest = hashlib.sha256()
        for part in _repr_in_parts(blocks.dataset.fingerprint, blocks.indices):
            digest.update(part.encode())
        return digest.hexdigest()[:32]
    return blocks.fingerprint


def _repr_in_parts(name: str, numbers: range) -> Iterator[str]:
    """repr((name, list(numbers))) without the list: a gigabyte for the blocks of a large text."""
    yield f"({name!r}, ["
    for start in range(numbers.start, numbers.stop, PART_BLOCKS):
        part = range(start, min(start + PART_BLOCKS, numbers.stop))
        yield (", " if start > numbers.start else "") + ", ".join(map(str, part))
    yield "])"


def _require_loss(blocks: Blocks) -> Blocks:
    """The blocks that hold something to learn: those of a long prompt alone would give a loss of 0 / 0.

    Raises:
        UserError: there is none.
    """
    if blocks.tokens.learned is None:
        return blocks
    learns = blocks.learns(blocks.tokens.learned)
    if not learns.any():
        raise UserError("holds no completion that a block has room for: raise --block_size", "train_file")
    return blocks.only(learns)


def collate(block_size: int, pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Puts blocks together to a batch for the model. Can be pickled, for workers that are processes of their own.

    Short blocks are padded on the right, where no token of theirs sees it, and padding carries no loss: so there is no
    mask, and attention is faster without one. Where positions restart, the mask is made here, (B, 1, T, T), and padding
    is at position 0, each on its own.
    """
    return partial(_batch, block_size=block_size, pad_id=pad_id)


def _batch(rows: list[dict[str, Any]], block_size: int, pad_id: int) -> dict[str, Tensor]:
    def padded(name: str, filling: int) -> Tensor:
        batch = torch.full((len(rows), block_size), filling)  # (B, T)
        for i, row in enumerate(rows):
            batch[i, : len(row[name])] = torch.as_tensor(row[name], dtype=torch.long)
        return batch

    labels = padded("labels" if "labels" in rows[0] else "input_ids", NO_LOSS)
    batch = {"input_ids": padded("input_ids", pad_id), "labels": labels}
    if "position_ids" in rows[0]:
        batch["position_ids"] = padded("position_ids", 0)
        batch["attention_mask"] = within_examples(batch["position_ids"])
    return batch


def count_tokens(batch: dict[str, Tensor], pad_id: int) -> Tensor:
    """(), the tokens in a batch that are no padding: in each row, those up to the last that is none."""
    is_padding = (batch["input_ids"] == pad_id) & (batch["labels"] == NO_LOSS)  # (B, T)
    places = torch.arange(1, is_padding.shape[1] + 1, device=is_padding.device)
    return places.where(~is_padding, 0).amax(dim=1).sum()


def within_examples(position_ids: Tensor) -> Tensor:
    """Which tokens see which: those of the same example that came no later, themselves included.

    Args:
        position_ids: (B, T), 0 where an example starts.

    Returns:
        (B, 1, T, T) bool, a row for each token that looks and a column for each that is seen.
    """
    example = (position_ids == 0).cumsum(dim=1)
    return (example[:, :, None] == example[:, None, :]).tril()[:, None]
