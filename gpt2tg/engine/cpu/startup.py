"""The start of a process that generates. Importing torch takes a second and one core; another can make the model
ready."""

from __future__ import annotations

import gc
import sys
from math import prod
from pathlib import Path

from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.find import find_checkpoint, is_directory
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.engine.cpu import preload
from gpt2tg.errors import UserError

# By their drivers' devices: an Nvidia GPU, one under Windows' Linux, one of AMD.
ACCELERATORS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")

# Those of small boards of Nvidia, on which the driver has other ones.
BOARDS = ("/dev/nvhost-ctrl", "/dev/nvmap")

# Bytes that a weight takes in a file, at least.
LEAST_STORED = 2


def import_torch(name: str, option: str, device: str, precision: str) -> None:
    """Import torch, and meanwhile make the model ready.

    Raises:
        UserError: no such model or device, or as `make_ready`.
    """
    if "torch" in sys.modules:
        return
    check_device(device)
    find_checkpoint(name, option)
    make_ready(name, option, device, precision)
    gc.disable()  # an import makes a great many objects, and hardly any garbage
    try:
        import torch  # noqa: F401

        gc.freeze()
    finally:
        gc.enable()


def check_device(name: str) -> None:
    """Refuse a device that is certain not to be there. Whether one that may be can be used, torch alone knows.

    Raises:
        UserError: names the device.
    """
    kind = name.partition(":")[0]
    has_driver = any(Path(path).exists() for path in (*ACCELERATORS, *BOARDS))
    is_missing = {"cuda": sys.platform == "linux" and not has_driver, "mps": sys.platform != "darwin"}
    if is_missing.get(kind, False):
        raise UserError(f"{name} asked for, but no such device is there: use auto or cpu", "device")


def make_ready(name: str, option: str, device: str, precision: str) -> None:
    """Begin to make a model ready, if it is in a directory and this processor's kernels will hold it.

    Args:
        name: of the model, as written after the flag `option`.

    Raises:
        UserError: the directory holds no model that could be used.
    """
    if is_directory(name) and _is_for_the_processor(device):
        directory = find_checkpoint(name, option)
        shape = read_shape(directory)
        if _holds_weights_of(directory, shape):
            preload.begin(directory, shape, "fp32" if precision == "auto" else precision)


def _is_for_the_processor(device: str) -> bool:
    return device == "cpu" or (device == "auto" and not any(Path(path).exists() for path in ACCELERATORS))


def _holds_weights_of(directory: Path, shape: ModelShape) -> bool:
    """Whether its files are large enough for a model of this shape. Where they are not, it will be refused, and no
    memory is to be taken for it first; or it is an adapter, small beside its model."""
    stored = sum(file.stat().st_size for file in directory.iterdir() if file.suffix in (".safetensors", ".bin"))
    return LEAST_STORED * sum(prod(size) for _, size in shape.tensors()) <= stored
