"""The start of a process that generates. Importing torch takes a second and one core; the others can make ready the
memory that the model will be held in."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from gpt2tg.engine import kernels, pages
from gpt2tg.engine.checkpoints import ModelShape, find_checkpoint, read_shape

# By their drivers' devices: an Nvidia GPU, one under Windows' Linux, one of AMD.
ACCELERATORS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")

BYTES_OF_A_WEIGHT = {"auto": 4, "fp32": 4, "fp16": 2, "int8": 1}

# Panels of a matrix are at most so wide.
PANEL = 32


def import_torch(name: str, option: str, device: str, precision: str) -> None:
    """Import torch, and meanwhile fill memory for the model.

    Raises:
        UserError: as `fill_for`.
    """
    if "torch" in sys.modules:
        return
    fill_for(name, option, device, precision)
    gc.disable()  # an import makes a great many objects, and hardly any garbage
    import torch  # noqa: F401

    gc.freeze()
    gc.enable()


def fill_for(name: str, option: str, device: str, precision: str) -> None:
    """Begin to fill memory for a model, if it is in a directory and this processor's kernels will hold it.

    Args:
        name: of the model, as written after the flag `option`.

    Raises:
        UserError: the directory holds no model that could be used.
    """
    if Path(name).expanduser().is_dir() and kernels.were_compiled() and _is_for_the_processor(device):
        shape = read_shape(find_checkpoint(name, option))
        pages.fill_ahead(*_sizes(shape, BYTES_OF_A_WEIGHT[precision]))


def _is_for_the_processor(device: str) -> bool:
    return device == "cpu" or (device == "auto" and not any(Path(path).exists() for path in ACCELERATORS))


def _sizes(shape: ModelShape, each: int) -> tuple[int, int]:
    """Bytes that the matrices take, and how many of them are filled ahead.

    The embedding comes first, and all of it is mapped while it is laid out: so much is left for later, lest more memory
    is taken at any time than at the end.
    """
    matrices = {name: size for name, size in shape.tensors() if len(size) == 2 and name != "wpe.weight"}
    total = sum(each * rows * -(-columns // PANEL) * PANEL for rows, columns in matrices.values())
    vocabulary, width = matrices["wte.weight"]
    return total + each * PANEL * width, max(total - 4 * vocabulary * width, 0)
