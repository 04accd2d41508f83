"""Memory in huge pages, as the system gives it. Linux gives them to a program that asks.

The first write to a page is what takes time, most of all where the host of a virtual machine has first to find the
memory. A thread can do the writing while another waits. Nothing here needs torch: its import is such a wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading

# Bytes that are filled in one go: the thread is asked to stop, and asks for Python's lock, between two of them.
PIECE = 32 * 2**20


def mapped(size: int) -> mmap.mmap:
    """Address space for so many bytes. What is not written to takes no memory.

    Raises:
        OSError: so much is not granted.
    """
    span = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a Linux without them
        span.madvise(mmap.MADV_HUGEPAGE)
    return span


class _Filling:
    """A span of memory of which a thread fills the beginning with zeros."""

    def __init__(self, size: int, filled: int) -> None:
        self._span = mapped(size)
        self._filled = filled
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        first = ctypes.addressof(ctypes.c_char.from_buffer(self._span))
        for start in range(0, self._filled, PIECE):
            if self._enough.is_set():
                return
            ctypes.memset(first + start, 0, min(PIECE, self._filled - start))

    def end(self) -> mmap.mmap:
        """The span, as far as it has come to be filled; nothing more is written to it."""
        self._enough.set()
        self._thread.join()
        return self._span


_filling: _Filling | None = None


def fill_ahead(size: int, filled: int) -> None:
    """Begin to fill memory for whoever calls `filled_ahead` first.

    Args:
        size: bytes that there will be.
        filled: how many of them are written to, at most.
    """
    global _filling
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError, RuntimeError):  # memory or a thread is not granted: who needs it will see
            _filling = _Filling(size, filled)


def filled_ahead() -> mmap.mmap | None:
    """What `fill_ahead` made ready, once. Who does not keep it gives it back."""
    global _filling
    made, _filling = _filling, None
    return made.end() if made else None
