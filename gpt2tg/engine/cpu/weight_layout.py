"""Where the weight matrices of a model lie: in a safetensors file, and packed in memory. Nothing here needs torch.

The layout in memory is the one that `matrices.Panels` allocates: matrix after matrix, in the order of
`ModelShape.matrices`, each in panels as wide as the kernels read at a time.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from typing import Any, NamedTuple

from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tensor_names import EMBEDDING, HEAD, stored_names
from gpt2tg.checkpoint.weight_files import LONGEST_HEADER
from gpt2tg.engine.cpu.kernels import Kernels
from gpt2tg.engine.cpu.memory_maps import line_after


class PackedMatrix(NamedTuple):
    """The place of one packed matrix, in bytes from the beginning of the memory."""

    name: str
    inputs: int
    outputs: int
    by_output: bool
    """Whether the file stores it as (outputs, inputs) instead of (inputs, outputs)."""
    panels: int
    scale: int
    """Where the scales of its outputs begin; used with int8 alone."""
    end: int


def packed_layout(shape: ModelShape, precision: str, library: Kernels) -> Iterator[PackedMatrix]:
    """Yield the place of each matrix."""
    end = 0
    for name, inputs, outputs, by_output in shape.matrices():
        panels = end
        scale = line_after(panels + library.packed_bytes(inputs, outputs, precision))
        end = line_after(scale + 4 * outputs) if precision == "int8" else scale
        yield PackedMatrix(name, inputs, outputs, by_output, panels, scale, end)


def packed_bytes(shape: ModelShape, precision: str, library: Kernels) -> int:
    """Return the size of all packed matrices."""
    *_, last = packed_layout(shape, precision, library)
    return last.end


def offsets_in_file(content: mmap.mmap, shape: ModelShape) -> dict[str, int]:
    """Return where each matrix begins in a safetensors file, in bytes from the beginning of the file.

    The library of safetensors does not tell these offsets without reading the tensors.

    Raises:
        ValueError, or what reading the header of a broken file raises (LookupError, TypeError, AttributeError,
            RecursionError): the file does not hold all matrices, complete and in fp32.
    """
    data = 8 + int.from_bytes(content[:8], "little")
    if data > min(len(content), LONGEST_HEADER):
        raise ValueError("the header is longer than the file")
    header: dict[str, Any] = json.loads(content[8:data])
    sizes = dict(shape.tensors())
    names = stored_names(header, {*sizes, HEAD})
    if shape.tied and EMBEDDING not in names:
        names[EMBEDDING] = names[HEAD]
    if any(len(several) > 1 for several in names.values()):
        raise ValueError("a tensor is stored twice")
    stored = {plain: header[name] for plain, (name,) in names.items()}
    offsets = {}
    for name, inputs, outputs, _ in shape.matrices():
        start, end = stored[name]["data_offsets"]
        offsets[name] = data + start
        if (
            (stored[name]["dtype"], tuple(stored[name]["shape"])) != ("F32", sizes[name])
            or not type(start) is type(end) is int
            or end - start != 4 * inputs * outputs
            or not 0 <= start <= end <= len(content) - data
            or offsets[name] % 4
        ):
            raise ValueError(f"{name} is truncated, of another shape, or not in fp32")
    return offsets
