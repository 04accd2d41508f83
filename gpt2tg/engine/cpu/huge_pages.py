"""Tensors in huge pages, for weights that are read from end to end in every decode step.

A CPU translates addresses page by page, and its prefetchers stop at the end of a page: from pages of 2 MB, weights are
read up to a third faster than from pages of 4 KB. Linux grants huge pages to a program that asks for them; elsewhere
torch allocates as usual.
"""

from __future__ import annotations

import mmap
from math import prod

import torch
from torch import Tensor

from gpt2tg.engine.cpu.memory_maps import line_after, mapped
from gpt2tg.engine.cpu.preload import Preloaded

# Bytes of address space that are mapped at a time. Pages that are never written to take no memory.
SPAN = 256 * 2**20


class HugePages:
    """Allocates tensors one after the other in large spans of memory, so that small ones share huge pages.

    A span is freed with the last tensor in it.
    """

    def __init__(self, ready: Preloaded | None = None, precision: str = "") -> None:
        """
        Args:
            ready: memory with packed matrices, which is handed out first.
            precision: the precision of the tensors to allocate. Packed matrices in another precision are overwritten.
        """
        self._span = ready.take() if ready else None
        self._used = 0
        self._packed = ready.packed_bytes if ready and ready.precision == precision else 0

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return an uninitialised tensor, or the next packed one (see `is_packed`)."""
        size = prod(shape) * dtype.itemsize
        if not size or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.empty(shape, dtype=dtype)
        if self._span is None or self._used + size > len(self._span):
            self._packed = 0  # only the first span holds packed matrices
            try:
                self._span, self._used = mapped(max(size, SPAN)), 0
            except OSError:  # the system does not grant so much address space
                return torch.empty(shape, dtype=dtype)
        tensor = torch.frombuffer(self._span, dtype=dtype, count=prod(shape), offset=self._used)
        self._used = line_after(self._used + size)
        return tensor.view(shape)

    @property
    def is_packed(self) -> bool:
        """Whether every tensor allocated so far holds packed weights, which must not be overwritten."""
        return 0 < self._used <= self._packed
