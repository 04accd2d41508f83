"""Memory in huge pages, for numbers that are read from end to end again and again.

A processor looks addresses up page by page, and cannot fetch ahead over the end of one. In pages of 2 MB weights are
read up to a third faster than in those of 4 KB. Linux gives them to a program that asks; elsewhere torch's memory is
used as it is.
"""

from __future__ import annotations

import mmap
from math import prod

import torch
from torch import Tensor

from gpt2tg.engine.cpu.memory_maps import line_after, mapped
from gpt2tg.engine.cpu.preload import Preloaded

# Address space taken at a time. What is not written to takes no memory.
SPAN = 256 * 2**20


class HugePages:
    """Gives tensors one behind the other, so that small ones lie in huge pages too. Each span of memory is given back
    when the last tensor in it is gone."""

    def __init__(self, ready: Preloaded | None = None, precision: str = "") -> None:
        """
        Args:
            ready: memory that is taken from first, as long as it has room.
            precision: what the matrices are held in that will lie there.
        """
        self._span = ready.take() if ready else None
        self._taken = 0
        self._laid_out = ready.packed_bytes if ready and ready.precision == precision else 0

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor whose numbers are still to be written."""
        size = prod(shape) * dtype.itemsize
        if not size or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.empty(shape, dtype=dtype)
        if self._span is None or self._taken + size > len(self._span):
            self._laid_out = 0  # that was of the span before
            try:
                self._span, self._taken = mapped(max(size, SPAN)), 0
            except OSError:  # so much address space is not granted
                return torch.empty(shape, dtype=dtype)
        tensor = torch.frombuffer(self._span, dtype=dtype, count=prod(shape), offset=self._taken)
        self._taken = line_after(self._taken + size)
        return tensor.view(shape)

    @property
    def is_laid_out(self) -> bool:
        """Whether all that was asked for so far was laid out ahead: it is not to be written to again."""
        return 0 < self._taken <= self._laid_out
