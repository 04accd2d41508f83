"""Memory in huge pages, as the system gives it. Linux gives them to a program that asks. Nothing here needs torch."""

from __future__ import annotations

import contextlib
import mmap

# Where numbers may begin: at a line of the processor's cache.
LINE = 64


def mapped(size: int) -> mmap.mmap:
    """Address space for so many bytes. What is not written to takes no memory.

    Raises:
        OSError: so much is not granted.
    """
    span = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a Linux without them
        span.madvise(mmap.MADV_HUGEPAGE)
    return span


def line_after(end: int) -> int:
    """Where the next numbers may begin."""
    return -(-end // LINE) * LINE
