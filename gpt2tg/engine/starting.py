"""The start of a process that generates. Importing torch takes a second and one core; the others can make ready the
memory that the model will be held in."""

from __future__ import annotations

import gc
import sys
from math import prod
from pathlib import Path

from gpt2tg.engine import kernels, pages
from gpt2tg.engine.checkpoints import ModelShape, find_checkpoint, is_directory, read_shape

# By their drivers' devices: an Nvidia GPU, one under Windows' Linux, one of AMD.
ACCELERATORS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")

BYTES_OF_A_WEIGHT = {"auto": 4, "fp32": 4, "fp16": 2, "int8": 1}

# Panels of a matrix are at most so wide: its outputs are filled up to a multiple of it.
PANEL = 32

# Bytes that a weight takes in a file, at least.
LEAST_STORED = 2


def import_torch(name: str, option: str, device: str, precision: str) -> None:
    """Import torch, and meanwhile fill memory for the model.

    Raises:
        UserError: as `fill_for`.
    """
    if "torch" in sys.modules:
        return
    fill_for(name, option, device, precision)
    gc.disable()  # an import makes a great many objects, and hardly any garbage
    try:
        import torch  # noqa: F401

        gc.freeze()
    finally:
        gc.enable()


def fill_for(name: str, option: str, device: str, precision: str) -> None:
    """Begin to fill memory for a model, if it is in a directory and this processor's kernels will hold it.

    Args:
        name: of the model, as written after the flag `option`.

    Raises:
        UserError: the directory holds no model that could be used.
    """
    if is_directory(name) and kernels.were_compiled() and _is_for_the_processor(device):
        directory = find_checkpoint(name, option)
        shape = read_shape(directory)
        if _holds_weights_of(directory, shape):
            pages.fill_ahead(*_sizes(shape, BYTES_OF_A_WEIGHT[precision]))


def _is_for_the_processor(device: str) -> bool:
    return device == "cpu" or (device == "auto" and not any(Path(path).exists() for path in ACCELERATORS))


def _holds_weights_of(directory: Path, shape: ModelShape) -> bool:
    """Whether its files are large enough for a model of this shape. Where they are not, it will be refused, and no
    memory is to be taken for it first; or it is an adapter, small beside its model."""
    stored = sum(file.stat().st_size for file in directory.iterdir() if file.suffix in (".safetensors", ".bin"))
    return LEAST_STORED * sum(prod(size) for _, size in shape.tensors()) <= stored


def _sizes(shape: ModelShape, each: int) -> tuple[int, int]:
    """Bytes that the matrices take, and how many of them are filled ahead.

    The embedding comes first, and all of it is mapped while it is laid out: so much is left for later, lest more memory
    is taken at any time than at the end.
    """
    total = 0
    for name, size in shape.tensors():
        if len(size) == 2 and name != "wpe.weight":
            # Token embedding and head are stored as (outputs, inputs).
            inputs, outputs = reversed(size) if name in ("wte.weight", "lm_head.weight") else size
            total += each * inputs * -(-outputs // PANEL) * PANEL
    return total, max(total - 4 * shape.vocab_size * shape.n_embd, 0)
