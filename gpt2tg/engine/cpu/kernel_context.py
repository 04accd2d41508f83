"""A context computed by our own kernels, whose rows share the tokens they have in common.

Shapes as in model.py; R rows of the KV cache: a sequence may be spread over several of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from gpt2tg.engine.context import Context
from gpt2tg.engine.cpu.kernel_model import KernelModel
from gpt2tg.engine.model import GPT2

# Tokens read in one forward pass. A long prompt is no slower in chunks, and the (T, C) table of cache rows stays small.
CHUNK = 1024


class KernelContext(Context):
    """A context in which `select` copies nothing.

    For every position of a row, a table names the cache row that holds it. Rows that were forked, such as beams or
    samples of one prompt, refer to the same cache rows up to the fork, and each writes to a cache row of its own.
    """

    is_exact = True

    def __init__(self, model: GPT2, kernel_model: KernelModel, capacity: int, keep_hidden: bool = False) -> None:
        super().__init__(model, capacity, keep_hidden)
        self._kernel_model = kernel_model
        self._cache = torch.empty(0)  # (layers, 2, R, W * C), see KernelModel.empty_cache
        self._cache_rows = torch.empty(0)  # (B, C) int32; beyond the end of a row, its write row
        self._write_rows: list[int] = []  # for each row, the cache row that it writes to

    def _allocate(self, rows: int) -> None:
        padded = self._kernel_model.padded(self.capacity)
        self._cache = self._kernel_model.empty_cache(rows, self.capacity)
        self._write_rows = list(range(rows))
        self._cache_rows = torch.arange(rows, dtype=torch.int32)[:, None].repeat(1, padded)

    def _clear(self, rows: Sequence[int]) -> None:
        """Empty these rows: give each a cache row that no other row refers to, which will hold all of its positions."""
        taken: set[int] = set()
        for row in range(len(self._ids)):
            if row not in rows:
                taken |= self._used_by(row)
        for row in rows:
            if self._write_rows[row] in taken:
                self._write_rows[row] = self._free_row(taken)
            taken.add(self._write_rows[row])
            self._cache_rows[row] = self._write_rows[row]

    def _used_by(self, row: int) -> set[int]:
        return {self._write_rows[row], *_distinct(self._cache_rows[row, : len(self._ids[row])])}

    def _free_row(self, taken: set[int]) -> int:
        """Return a cache row that is not taken; the cache grows if there is none."""
        free = next((row for row in range(self._cache.shape[2]) if row not in taken), None)
        return self._grow(1) if free is None else free

    def _grow(self, rows: int) -> int:
        """Add rows to the cache, and return the first of them. Copies only as far as the longest row is filled."""
        layers, parts, count, size = self._cache.shape
        grown = self._cache.new_empty(layers, parts, count + rows, size)
        filled = -(-max(self.lengths, default=0) // self._kernel_model.tile)
        tiles = self._kernel_model.tiles
        tiles(grown)[:, :, :count, :, :filled] = tiles(self._cache)[..., :filled, :]
        self._cache = grown
        return count

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See `Context.start`. A single prompt that begins like a row of the cache is read from where they differ."""
        if len(prompts) == 1 and self._ids and not self._keep_hidden:
            shared = [common_prefix(ids, prompts[0][:-1]) for ids in self._ids]
            row = max(range(len(shared)), key=shared.__getitem__)
            if shared[row]:
                self.select([row])
                self.take_back([len(self._ids[0]) - shared[row]])
                return self._read({0: prompts[0][shared[row] :]}, logits_of_all=False)
        return super().start(prompts)

    @torch.inference_mode()
    def read(self, texts: Mapping[int, Sequence[int]]) -> Tensor:
        """See `Context.read`. The logits of a row do not depend on the other rows, to the last bit."""
        for row in texts:
            self._ids[row] = []
        self._clear(list(texts))
        return self._read(texts, logits_of_all=False)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See `Context.step`."""
        return self._read({row: [token] for row, token in enumerate(tokens.tolist())}, logits_of_all=False)

    @torch.inference_mode()
    def extend(self, tokens: Mapping[int, Sequence[int]], every: bool = True) -> Tensor:
        """See `Context.extend`."""
        return self._read(tokens, logits_of_all=every)

    def _read(self, texts: Mapping[int, Sequence[int]], logits_of_all: bool) -> Tensor:
        """Append tokens to rows. Return the logits after each token, or after the last one of each row."""
        ids = [token for text in texts.values() for token in text]
        positions = [len(self._ids[row]) + n for row, text in texts.items() for n in range(len(text))]
        self._check(ids, positions)
        rows = [row for row, text in texts.items() for _ in text]
        is_step = rows == list(range(len(self._ids)))  # one token for each row
        selected = range(len(ids)) if logits_of_all else [end - 1 for end in accumulate(map(len, texts.values()))]
        hidden = torch.empty(len(ids), self._model.shape.n_embd) if self._keep_hidden else None
        logits = []
        for start in range(0, len(ids), CHUNK):
            chunk = slice(start, start + CHUNK)
            logits.append(
                self._kernel_model.forward(
                    self._cache,
                    ids[chunk],
                    positions[chunk],
                    self._cache_rows[chunk] if is_step else self._cache_rows[rows[chunk]],
                    [token - start for token in selected if start <= token < start + CHUNK],
                    None if hidden is None else hidden[chunk],
                )
            )
        for row, text in texts.items():
            self._ids[row] += text
        if hidden is not None:
            self._hidden = list(torch.split(hidden, [len(text) for text in texts.values()]))
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _check(self, ids: Sequence[int], positions: Sequence[int]) -> None:
        """Refuse arguments for which the kernels, which check nothing, would access memory out of bounds."""
        vocabulary = self._model.shape.vocab_size
        if max(positions) >= self.capacity:
            raise IndexError(f"the cache holds {self.capacity} tokens a row, and a row is full")
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise IndexError(f"a token is outside the vocabulary of {vocabulary}")

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """See `Context.select`. Nothing is copied: a row named twice shares its history with its twin."""
        ids = [list(self._ids[row]) for row in rows]
        lengths_stay = [len(text) for text in ids] == self.lengths
        self._cache_rows = self._cache_rows[list(rows)]
        if not lengths_stay:
            self._assign_write_rows(rows, ids)
        self._ids = ids
        for row, text in enumerate(ids):
            self._cache_rows[row, len(text) :] = self._write_rows[row]

    def _assign_write_rows(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Give every selected row a cache row to write to. The first copy of a row keeps that row's; the others get
        cache rows that no row refers to.

        Not needed if every row keeps its length: nothing is stored in its cache row beyond that length.
        """
        taken = {self._write_rows[row] for row in rows}
        for row, text in enumerate(ids):
            taken.update(_distinct(self._cache_rows[row, : len(text)]))
        missing = len(rows) - len(set(rows)) - (self._cache.shape[2] - len(taken))
        if missing > 0:  # grow once, not row by row
            self._grow(missing)
        assigned: list[int] = []
        for row in rows:
            parent = self._write_rows[row]
            assigned.append(parent if parent not in assigned else self._free_row(taken))
            taken.add(assigned[-1])
        self._write_rows = assigned


def _distinct(cache_rows: Tensor) -> set[int]:
    return set(cache_rows.tolist())


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens two texts have in common at their beginning."""
    pairs = zip(left, right, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
