"""Pack a model's weights in a background thread while torch is imported, which takes a second of one core.

The kernels pack weights without torch, straight from a memory-mapped file. If they cannot read the file, the thread
prefaults the memory instead: the first write to a page is slow, above all in a virtual machine, whose host has to find
the memory first. Nothing here needs torch.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.file_names import WEIGHT_FILES
from gpt2tg.engine.cpu import compiler, kernels
from gpt2tg.engine.cpu.memory_maps import mapped
from gpt2tg.engine.cpu.weight_layout import offsets_in_file, packed_bytes, packed_layout

# Bytes that are prefaulted between two checks of the stop flag.
PIECE = 32 * 2**20

# The fields of `os.stat` that differ when another file takes the place of the one that was read.
IDENTITY = ("st_dev", "st_ino", "st_size", "st_mtime_ns")

# What reading a broken or foreign file may raise. Whoever reads it next reports what is wrong with it.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError)


@dataclass
class Preloaded:
    """Memory for a model's matrices, in the order of its tensors. The first of them are packed already."""

    span: mmap.mmap | None
    """The memory; None once it was taken, so that it is freed with the last matrix in it."""
    precision: str = ""
    """The precision of the packed matrices."""
    packed_bytes: int = 0
    """Size of the packed matrices at the beginning of the memory."""
    names: frozenset[str] = frozenset()
    """The names of the packed matrices, whose weights are known to be finite."""

    def take(self) -> mmap.mmap | None:
        """Return the memory; None from the second call on."""
        span, self.span = self.span, None
        return span


class Preload:
    """A background thread that packs the weights of one checkpoint. Whoever started it takes the result once."""

    def __init__(self, checkpoint: Checkpoint, precision: str, library: kernels.Kernels) -> None:
        """Allocate the memory and start the thread.

        Raises:
            OSError, RuntimeError: the system grants no memory, or no thread.
        """
        self.directory = checkpoint.directory
        self._library = library
        self._shape = checkpoint.shape
        self._precision = precision
        self._span: mmap.mmap | None = mapped(packed_bytes(checkpoint.shape, precision, library))
        self._stop = ctypes.c_int32(0)
        self._lock = threading.Lock()
        self._file = checkpoint.directory / WEIGHT_FILES[0]
        self._file_read: os.stat_result | None = None
        self._packed: list[str] = []
        self._packed_bytes = 0
        self._thread = threading.Thread(target=self._work, args=(self._span,), daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, checkpoint: Checkpoint, precision: str) -> Preload | None:
        """Start to pack the weights of a checkpoint; None where there are no kernels, or no memory or thread for it."""
        # The kernels are loaded before torch, and must use the thread library that torch will use.
        if not hasattr(mmap, "MADV_HUGEPAGE") or not compiler.openmp_libraries() or not (library := kernels.load()):
            return None
        try:
            return cls(checkpoint, precision, library)
        except (OSError, RuntimeError):  # whoever needs the memory next reports it
            return None

    def take(self, checkpoint: Checkpoint) -> Preloaded | None:
        """Stop the thread and return what it has packed; None from the second call on, or for another checkpoint.

        Memory that is not returned is freed. Any thread may call it. If the file has changed meanwhile, the memory is
        returned without a packed matrix.
        """
        with self._lock:
            span, self._span = self._span, None
            self._stop.value = 1
            self._thread.join()
        if span is None or checkpoint.directory != self.directory:
            return None
        if not self._packed or not self._file_is_unchanged():
            return Preloaded(span)
        return Preloaded(span, self._precision, self._packed_bytes, frozenset(self._packed))

    def _file_is_unchanged(self) -> bool:
        try:
            now = self._file.stat()
        except OSError:
            return False
        return all(getattr(self._file_read, key) == getattr(now, key) for key in IDENTITY)

    def _work(self, span: mmap.mmap) -> None:
        try:
            content, self._file_read = map_file(self._file)
            offsets = offsets_in_file(content, self._shape)
        except UNREADABLE:
            self._prefault(span)
        else:
            self._pack(content, offsets, span)

    def _pack(self, content: mmap.mmap, offsets: dict[str, int], span: mmap.mmap) -> None:
        file, memory = _address(content), _address(span)
        layout = list(packed_layout(self._shape, self._precision, self._library))
        matrices = [
            kernels.UnpackedMatrix(
                weights=file + offsets[place.name],
                input_stride=1 if place.by_output else place.outputs,
                output_stride=place.inputs if place.by_output else 1,
                inputs=place.inputs,
                outputs=place.outputs,
                precision=kernels.PRECISIONS[self._precision],
                panels=memory + place.panels,
                scale=memory + place.scale if self._precision == "int8" else None,
            )
            for place in layout
        ]
        array = (kernels.UnpackedMatrix * len(layout))(*matrices)
        done = layout[: self._library.pack_file(array, len(layout), self._stop)]
        if done:
            self._packed, self._packed_bytes = [place.name for place in done], done[-1].end

    def _prefault(self, span: mmap.mmap) -> None:
        """Write to every page, except the last ones: as many as the embedding takes in fp32.

        While the embedding is packed, which happens first, the original is in memory too. Leaving its size unallocated
        keeps the peak memory within the final size.
        """
        memory, end = _address(span), len(span) - 4 * self._shape.vocab_size * self._shape.n_embd
        for start in range(0, end, PIECE):
            if self._stop.value:
                return
            ctypes.memset(memory + start, 0, min(PIECE, end - start))


def map_file(path: Path) -> tuple[mmap.mmap, os.stat_result]:
    """Map a file into memory; return its content and its stat.

    It is mapped copy-on-write, because ctypes takes the address of writable buffers alone. We never write to it.
    """
    if not path.is_file():  # opening a pipe would block
        raise FileNotFoundError(f"{path} is no file")
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), os.fstat(file.fileno())


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
