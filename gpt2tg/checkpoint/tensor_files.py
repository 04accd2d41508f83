"""Read files of named tensors: safetensors, and pickles with torch's weights-only reader, which runs no code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2tg.errors import UserError, one_line
from gpt2tg.io.lfs import refuse_pointer

# Bytes to read from a memory-mapped file before mapping it again, which lets the system drop the pages read so far.
REMAP_AFTER = 32_000_000

# Types that weights may be stored in: torch's type, and its name in safetensors.
WEIGHT_TYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}

# Keys under which training loops save the weights in a pickle that also holds the state of the optimizer.
WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "module")


class Safetensors:
    """A memory-mapped safetensors file. It is mapped again from time to time, to keep resident memory small."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._open()
        slices = {name: self._mapped.get_slice(name) for name in self._mapped.keys()}  # noqa: SIM118
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(part.get_shape()) for name, part in slices.items()}
        self._types: dict[str, str] = {name: part.get_dtype() for name, part in slices.items()}

    def _open(self) -> None:
        try:
            self._mapped: Any = safe_open(self.file, framework="pt")  # the library has no type annotations
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{self.file} is truncated or broken ({one_line(error)}): copy or download it again"
            ) from None
        self._read = 0

    def unreadable_type(self, name: str) -> str | None:
        """Return the type of a tensor if weights must not have it, else None."""
        kind = self._types[name]
        return None if kind in WEIGHT_TYPES.values() else kind

    def read(self, name: str) -> Tensor:
        """Return a tensor, memory-mapped."""
        if self._read > REMAP_AFTER:
            self._open()
        tensor: Tensor = self._mapped.get_tensor(name)
        self._read += tensor.nbytes
        return tensor


class Pickle:
    """A file that `torch.save` wrote."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._tensors = _read_pickle(file)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def unreadable_type(self, name: str) -> str | None:
        """Return the type of a tensor if weights must not have it, else None."""
        tensor = self._tensors[name]
        if tensor.layout != torch.strided or tensor.is_meta:
            return f"{tensor.layout} on {tensor.device}"
        return None if tensor.dtype in WEIGHT_TYPES else str(tensor.dtype)

    def read(self, name: str) -> Tensor:
        """Return a tensor, memory-mapped if the format of the file allows it."""
        return self._tensors[name]


TensorFile = Safetensors | Pickle


def open_tensors(file: Path) -> TensorFile:
    """Open a file of named tensors: a pickle if its suffix is .bin, else safetensors.

    Raises:
        UserError: the file is truncated, broken or a Git LFS pointer, or a pickle holds code or no named tensors.
    """
    refuse_pointer(file)
    return Pickle(file) if file.suffix == ".bin" else Safetensors(file)


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite. Their sum answers faster; if it overflows, each value is looked at."""
    total = tensor.sum(dtype=torch.float32 if tensor.dtype != torch.float64 else None)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def _read_pickle(file: Path) -> dict[str, Tensor]:
    """Return the named tensors of a pickle. torch's weights-only reader runs no code that the file contains."""
    try:
        is_mappable = zipfile.is_zipfile(file)  # not the format before torch 1.6
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_mappable)
    except Exception as error:  # a broken pickle can raise any error
        raise UserError(
            f"{file} is refused: it is broken or holds more than weights, and nothing in it was run "
            f"({one_line(error, 120)}). Convert it to model.safetensors on a machine where you trust it"
        ) from None
    if weights := _named_tensors(content):
        return weights
    entries = content if isinstance(content, dict) else {}
    found = {key: weights for key in WEIGHT_KEYS if (weights := _named_tensors(entries.get(key)))}
    if len(found) > 1:
        raise UserError(
            f"{file} holds several sets of weights ({', '.join(found)}): save one of them in a file of its own"
        )
    if not found:
        raise UserError(f"{file} holds no named weights: save the model's state_dict")
    return found.popitem()[1]


def _named_tensors(content: object) -> dict[str, Tensor]:
    """Return the tensors that have a name. Other entries, such as the step of a training run, are dropped."""
    entries = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in entries if isinstance(name, str) and isinstance(value, Tensor)}
