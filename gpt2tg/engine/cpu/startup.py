"""The start of a process that generates: import torch, and preload the model meanwhile. Nothing here needs torch."""

from __future__ import annotations

import gc
import os
import re
import sys
from math import prod
from pathlib import Path

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.engine.cpu.preload import Preload
from gpt2tg.errors import UserError

# The environment variable that says what `--device auto` is.
DEVICE_VARIABLE = "GPT2TG_DEVICE"

# Device files of the drivers of an Nvidia GPU, one under Windows' Linux subsystem, and one of AMD.
ACCELERATORS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")

# Those of Nvidia's boards (Jetson).
BOARDS = ("/dev/nvhost-ctrl", "/dev/nvmap")

# The fewest bytes that a file takes for a weight.
LEAST_STORED = 2


def wanted_device(device: str) -> str:
    """Return a `--device` value, `auto` replaced by the value of GPT2TG_DEVICE if that is set.

    Raises:
        UserError: the variable names no device.
    """
    named = os.environ.get(DEVICE_VARIABLE)
    if device != "auto" or not named:
        return device
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", named):
        raise UserError(f"{DEVICE_VARIABLE}={named} is not a device: use auto, cpu, cuda, cuda:N or mps")
    return named


def check_device(name: str) -> None:
    """Refuse a device that certainly does not exist. Only torch knows whether an existing one can be used.

    Raises:
        UserError: names the device.
    """
    kind = name.partition(":")[0]
    has_driver = any(Path(path).exists() for path in (*ACCELERATORS, *BOARDS))
    is_missing = {"cuda": sys.platform == "linux" and not has_driver, "mps": sys.platform != "darwin"}
    if is_missing.get(kind, False):
        raise UserError(f"{name} asked for, but this machine has no such device: use auto or cpu", "device")


def import_torch(checkpoint: Checkpoint, device: str, precision: str) -> Preload | None:
    """Import torch, and preload the model in the background. Pass the result on to `load_checkpoint`.

    Returns:
        None if torch was imported before, or the model cannot be preloaded.
    """
    if "torch" in sys.modules:
        return None
    preload = start_preload(checkpoint, device, precision)
    gc.disable()  # an import creates many objects, but hardly any garbage
    try:
        import torch  # noqa: F401  # for those who import it next

        gc.freeze()
    finally:
        gc.enable()
    return preload


def start_preload(checkpoint: Checkpoint, device: str, precision: str) -> Preload | None:
    """Preload a model if it will run on the CPU, in the precision that it will have there; None otherwise."""
    if _is_cpu(device) and _holds_weights(checkpoint):
        return Preload.start(checkpoint, "fp32" if precision == "auto" else precision)
    return None


def _is_cpu(device: str) -> bool:
    wanted = wanted_device(device)
    return wanted == "cpu" or (wanted == "auto" and not any(Path(path).exists() for path in ACCELERATORS))


def _holds_weights(checkpoint: Checkpoint) -> bool:
    """Whether the files are large enough for a model of this shape.

    Smaller ones are an adapter's, or a broken model's, for which no memory should be allocated before it is refused.
    """
    files = (file for file in checkpoint.directory.iterdir() if file.suffix in (".safetensors", ".bin"))
    stored = sum(file.stat().st_size for file in files)
    return LEAST_STORED * sum(prod(size) for _, size in checkpoint.shape.tensors()) <= stored
