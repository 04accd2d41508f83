"""Anonymous memory maps in huge pages. Nothing here needs torch."""

from __future__ import annotations

import contextlib
import mmap

# Bytes of a line of the CPU's cache, at which tensors are aligned.
LINE = 64


def mapped(size: int) -> mmap.mmap:
    """Map so many bytes of memory, in huge pages if the system has them. Pages that are never written to take none.

    Raises:
        OSError: the system does not grant so much.
    """
    span = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a Linux kernel without huge pages
        span.madvise(mmap.MADV_HUGEPAGE)
    return span


def line_after(end: int) -> int:
    """Round an offset up to the next cache line."""
    return -(-end // LINE) * LINE
