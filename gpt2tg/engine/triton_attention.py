"""Attention of a decode step on a CUDA GPU, in Triton: split over the keys, as flash-decoding is (Dao et al. 2023).

The kernels read the length of each row from the GPU and append the new key and value to the KV cache. So they need no
mask, read no slot beyond the length of a row, and one CUDA graph serves all lengths. Keys are split at fixed places, so
that the sums of a row do not depend on other rows.

Shapes as in model.py; S splits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Keys of a split. A split is one program of the GPU: fewer keys make more programs for a single row.
SPLIT = 128

# Keys that a program reads at a time.
BLOCK = 64


class SplitAttention:
    """Attention of one new token of each row to a KV cache. Holds the scratch space of the splits."""

    def __init__(self, rows: int, heads: int, head_size: int, capacity: int, device: torch.device) -> None:
        self._splits = triton.cdiv(capacity, SPLIT)
        self._padded = triton.next_power_of_2(head_size)  # Triton computes with powers of two
        splits = (rows, heads, self._splits)
        self._mixed = torch.empty(*splits, self._padded, dtype=torch.float32, device=device)
        self._maxima = torch.empty(splits, dtype=torch.float32, device=device)
        self._totals = torch.empty(splits, dtype=torch.float32, device=device)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float
    ) -> Tensor:
        """Append key and value to the cache, and attend to all tokens of each row, the new one included.

        Args:
            query, key, value: (B, H, 1, D), of the new token. The last dimension is contiguous, and the other strides
                are equal.
            keys, values: (B, H, C, D) of one layer of the cache, contiguous from H on.
            lengths: (B,) int64, tokens in the cache before this one; each below C.
            scale: of the scores.

        Returns:
            (B, H, 1, D)
        """
        rows, heads, _, size = query.shape
        output = torch.empty(rows, heads, 1, size, dtype=query.dtype, device=query.device)
        scratch = self._mixed, self._maxima, self._totals
        sizes = {"SIZE": size, "PADDED": self._padded, "KEYS": SPLIT}
        attend_to_split[(rows * heads, self._splits)](
            query, key, value, keys, values, lengths, *scratch, scale, heads, self._splits,
            query.stride(0), query.stride(1), keys.stride(0), keys.stride(1), **sizes, BLOCK_KEYS=BLOCK,
        )  # fmt: skip
        merge_splits[(rows * heads,)](*scratch, lengths, output, heads, self._splits, **sizes)
        return output


# One compiled form serves every capacity and every buffer of lengths. Triton would compile another one, in the middle
# of a text, for a number or an address that is a multiple of 16.
generic = triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["lengths"])


@generic  # type: ignore[untyped-decorator]  # Triton's types are not checked
def attend_to_split(  # type: ignore[no-untyped-def]  # the arguments are Triton's
    query, key, value, keys, values, lengths, mixed_out, maxima_out, totals_out, scale, heads, splits,
    row_stride, head_stride, cache_row_stride, cache_head_stride, SIZE: tl.constexpr, PADDED: tl.constexpr,
    KEYS: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Attend to the keys of one split, for one head of one row. Writes a part of a sum, as `combined` takes it."""
    row_and_head, split = tl.program_id(0), tl.program_id(1)
    row, head = (row_and_head // heads).to(tl.int64), row_and_head % heads
    length = tl.load(lengths + row).to(tl.int32)  # the type of the slots
    first = split * KEYS
    if first > length:
        return
    dimension = tl.arange(0, PADDED)
    exists = dimension < SIZE
    new = row * row_stride + head * head_stride + dimension
    in_cache = row * cache_row_stride + head * cache_head_stride
    q = tl.load(query + new, mask=exists, other=0.0).to(tl.float32) * scale
    maximum = -float("inf")
    total = 0.0
    mixed = tl.zeros((PADDED,), tl.float32)
    for start in range(first, tl.minimum(first + KEYS, length), BLOCK_KEYS):
        slot = start + tl.arange(0, BLOCK_KEYS)
        is_read = slot < length
        at = in_cache + slot[:, None] * SIZE + dimension[None, :]
        mask = is_read[:, None] & exists[None, :]
        k = tl.load(keys + at, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(values + at, mask=mask, other=0.0).to(tl.float32)
        scores = tl.where(is_read, tl.sum(k * q[None, :], axis=1), float("-inf"))
        highest = tl.max(scores, axis=0)
        weights = tl.exp(scores - highest)
        block = tl.sum(weights[:, None] * v, axis=0)
        maximum, total, mixed = combined(maximum, total, mixed, highest, tl.sum(weights, axis=0), block)
    if length < first + KEYS:  # the new token belongs to this split
        k = tl.load(key + new, mask=exists, other=0.0)
        v = tl.load(value + new, mask=exists, other=0.0)
        at = in_cache + length * SIZE + dimension
        tl.store(keys + at, k, mask=exists)
        tl.store(values + at, v, mask=exists)
        score = tl.sum(k.to(tl.float32) * q, axis=0)
        maximum, total, mixed = combined(maximum, total, mixed, score, 1.0, v.to(tl.float32))
    place = row_and_head.to(tl.int64) * splits + split
    tl.store(maxima_out + place, maximum)
    tl.store(totals_out + place, total)
    tl.store(mixed_out + place * PADDED + dimension, mixed)


@triton.jit
def combined(maximum, total, mixed, other_maximum, other_total, other_mixed):  # type: ignore[no-untyped-def]
    """Add two parts of a softmax-weighted sum: highest score, sum of the weights, and weighted sum of the values (D).

    Weights are relative to the highest score of their part, so that none overflows (Milakov & Gimelshein 2018).
    """
    highest = tl.maximum(maximum, other_maximum)
    factor, other_factor = tl.exp(maximum - highest), tl.exp(other_maximum - highest)
    return highest, total * factor + other_total * other_factor, mixed * factor + other_mixed * other_factor


@generic  # type: ignore[untyped-decorator]  # Triton's types are not checked
def merge_splits(  # type: ignore[no-untyped-def]  # the arguments are Triton's
    mixed_in, maxima_in, totals_in, lengths, output, heads, splits, SIZE: tl.constexpr, PADDED: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """Combine the splits of one head of one row, and write the weighted mean of the values (D)."""
    row_and_head = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + row_and_head // heads).to(tl.int32)
    dimension = tl.arange(0, PADDED)
    maximum = -float("inf")
    total = 0.0
    mixed = tl.zeros((PADDED,), tl.float32)
    for split in range(0, length // KEYS + 1):
        place = row_and_head * splits + split
        of_split = tl.load(mixed_in + place * PADDED + dimension)
        highest, sum_of_weights = tl.load(maxima_in + place), tl.load(totals_in + place)
        maximum, total, mixed = combined(maximum, total, mixed, highest, sum_of_weights, of_split)
    at = output + row_and_head * SIZE + dimension
    tl.store(at, (mixed / total).to(output.dtype.element_ty), mask=dimension < SIZE)
