"""What a thread makes ready of a model while torch is imported, which is a second of waiting with the other cores idle.

The kernels need no torch: they lay out the weights of a file. Where the file is none that they can read, memory is
filled at least: the first write to a page takes time, most of all where the host of a virtual machine has first to find
the memory. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gpt2tg.checkpoint.find import ModelShape
from gpt2tg.checkpoint.hub import WEIGHT_FILES
from gpt2tg.checkpoint.weight_files import EMBEDDING, HEAD, stored_names
from gpt2tg.engine.cpu import compiler, kernels
from gpt2tg.engine.cpu.memory_maps import line_after, mapped

BYTES_OF_A_WEIGHT = {"fp32": 4, "fp16": 2, "int8": 1}

# Bytes that the header of a file of safetensors takes, at most: its reader accepts no more either.
LONGEST_HEADER = 100_000_000

# Bytes that are filled in one go: the thread is asked to stop, and asks for Python's lock, between two of them.
PIECE = 32 * 2**20

# What tells a file from another one that took its place.
IDENTITY = ("st_dev", "st_ino", "st_size", "st_mtime_ns")

# What may come of a file that is something else. Who reads it next will say what is wrong with it.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError)


@dataclass
class Ready:
    """Memory in which a model's matrices lie one behind the other, in the order of its tensors; or some of them, and
    room for the others."""

    span: mmap.mmap | None
    """None when someone took it: it is given back as soon as that one needs it no more."""
    precision: str = ""
    """What they are held in."""
    laid_out: int = 0
    """Bytes at the beginning in which matrices lie."""
    names: frozenset[str] = frozenset()
    """Of those matrices. Their weights were found to be finite."""

    def take(self) -> mmap.mmap | None:
        """The memory, once."""
        span, self.span = self.span, None
        return span


class Ahead:
    """A model that is being made ready."""

    def __init__(self, directory: Path, shape: ModelShape, precision: str, library: kernels.Kernels) -> None:
        self.directory = directory
        self._library = library
        self._shape = shape
        self._precision = precision
        self._span = mapped(memory_of(shape, precision, library.panel))
        self._first = ctypes.addressof(ctypes.c_char.from_buffer(self._span))
        self._stop = ctypes.c_int32(0)
        self._ready = Ready(self._span)
        self._file = directory / WEIGHT_FILES[0]
        self._read: os.stat_result | None = None  # the file that was read, at that time
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def end(self) -> Ready:
        """What is ready by now; nothing more is written to it. Of a file that is another one now, the memory alone."""
        self._stop.value = 1
        self._thread.join()
        return self._ready if self._is_as_it_was() else Ready(self._span)

    def _is_as_it_was(self) -> bool:
        try:
            now = self._file.stat()
        except OSError:
            return False
        return self._read is not None and all(getattr(self._read, key) == getattr(now, key) for key in IDENTITY)

    def _work(self) -> None:
        try:
            content, self._read = _map_file(self._file)
            places = places_in(content, self._shape)
        except UNREADABLE:
            self._fill()
        else:
            self._lay_out(content, places)

    def _lay_out(self, content: mmap.mmap, places: dict[str, int]) -> None:
        file = ctypes.addressof(ctypes.c_char.from_buffer(content))
        rooms = list(_rooms(self._shape, self._precision, self._library.panel))
        matrices = [
            kernels.UnpackedMatrix(
                weights=file + places[room.name],
                input_stride=1 if room.by_output else room.outputs,
                output_stride=room.inputs if room.by_output else 1,
                inputs=room.inputs,
                outputs=room.outputs,
                precision=kernels.PRECISIONS[self._precision],
                panels=self._first + room.panels,
                scale=self._first + room.scale if self._precision == "int8" else None,
            )
            for room in rooms
        ]
        done = rooms[
            : self._library.pack_file((kernels.UnpackedMatrix * len(rooms))(*matrices), len(rooms), self._stop)
        ]
        if done:
            self._ready = Ready(self._span, self._precision, done[-1].end, frozenset(room.name for room in done))

    def _fill(self) -> None:
        """The embedding comes first, and all of it is mapped while it is laid out: so much is left for later, lest more
        memory is taken at any time than at the end."""
        filled = len(self._span) - 4 * self._shape.vocab_size * self._shape.n_embd
        for start in range(0, filled, PIECE):
            if self._stop.value:
                return
            ctypes.memset(self._first + start, 0, min(PIECE, filled - start))


def memory_of(shape: ModelShape, precision: str, panel: int) -> int:
    """Bytes that the matrices of a model take in panels so wide."""
    *_, last = _rooms(shape, precision, panel)
    return last.end


class _Room(NamedTuple):
    """Where a matrix will lie."""

    name: str
    inputs: int
    outputs: int
    by_output: bool
    panels: int
    scale: int
    end: int


def _rooms(shape: ModelShape, precision: str, panel: int) -> Iterator[_Room]:
    """One for each matrix, as `linear.Panels` will ask for memory."""
    end = 0
    for name, inputs, outputs, by_output in shape.matrices():
        panels = end
        scale = line_after(panels + BYTES_OF_A_WEIGHT[precision] * inputs * -(-outputs // panel) * panel)
        end = line_after(scale + 4 * outputs) if precision == "int8" else scale
        yield _Room(name, inputs, outputs, by_output, panels, scale, end)


def _map_file(path: Path) -> tuple[mmap.mmap, os.stat_result]:
    """A file's content, and which file it is. The content is a copy of what is written to: nothing is, but of what is
    only read ctypes tells no place."""
    if not path.is_file():  # a pipe would keep who opens it waiting
        raise FileNotFoundError(f"{path} is no file")
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), os.fstat(file.fileno())


def places_in(content: mmap.mmap, shape: ModelShape) -> dict[str, int]:
    """Where the matrices begin in a file of safetensors, whose reader gives no place without torch or a copy.

    Raises:
        UNREADABLE: it does not hold them all, whole and in 32 bits.
    """
    beginning = 8 + int.from_bytes(content[:8], "little")
    if beginning > min(len(content), LONGEST_HEADER):
        raise ValueError("the header is longer than the file")
    header: dict[str, Any] = json.loads(content[8:beginning])
    sizes, places = dict(shape.tensors()), {}
    names = stored_names(header, {*sizes, HEAD})
    if shape.tied and EMBEDDING not in names:
        names[EMBEDDING] = names[HEAD]
    if any(len(several) > 1 for several in names.values()):
        raise ValueError("a tensor is there twice")
    stored = {plain: header[name] for plain, (name,) in names.items()}
    for name, inputs, outputs, _ in shape.matrices():
        start, end = stored[name]["data_offsets"]
        places[name] = beginning + start
        if (
            (stored[name]["dtype"], tuple(stored[name]["shape"])) != ("F32", sizes[name])
            or not type(start) is type(end) is int
            or end - start != 4 * inputs * outputs
            or not 0 <= start <= end <= len(content) - beginning
            or places[name] % 4
        ):
            raise ValueError(f"{name} is not 32-bit numbers of this shape, or not whole")
    return places


_ahead: Ahead | None = None


def begin(directory: Path, shape: ModelShape, precision: str) -> None:
    """Begin to make a model ready for whoever asks for it first with `end`, if there are kernels for it."""
    global _ahead
    # The kernels come before torch here, and must not bring another library of threads than torch will.
    if hasattr(mmap, "MADV_HUGEPAGE") and compiler.openmp_libraries() and (library := kernels.load()):
        with contextlib.suppress(OSError, RuntimeError):  # memory or a thread is not granted: who needs it will see
            _ahead = Ahead(directory, shape, precision, library)


def end(directory: Path) -> Ready | None:
    """What `begin` made ready of this model, once. Who does not keep it gives it back."""
    global _ahead
    made, _ahead = _ahead, None
    ready = made.end() if made else None
    return ready if made and made.directory == directory else None
