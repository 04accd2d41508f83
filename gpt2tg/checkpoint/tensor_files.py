"""Files of named tensors: safetensors, and pickles through torch's weights-only reader, which runs no code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gpt2tg.errors import UserError, one_line
from gpt2tg.io.lfs import refuse_pointer

# Bytes of a file of weights that are read before it is mapped anew.
REMAP_AFTER = 32_000_000

# The types that weights may be stored in, by torch and by safetensors; they are computed with in 32 bits.
WEIGHT_TYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}

# Where training loops keep the weights in a pickle that holds the state of the optimizer too.
NESTED_IN = ("state_dict", "model_state_dict", "model", "module")


class Safetensors:
    """A memory-mapped file of tensors, mapped anew now and then so that what was read need not stay in memory."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._open()
        slices = {name: self._mapped.get_slice(name) for name in self._mapped.keys()}  # noqa: SIM118
        self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        self._types = {name: part.get_dtype() for name, part in slices.items()}

    def _open(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._mapped = safe_open(self.file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.file} is cut or broken: {error}") from None
        self._read = 0

    def unreadable_type(self, name: str) -> str | None:
        """The type of a tensor where it is none that weights may have."""
        kind: str = self._types[name]
        return None if kind in WEIGHT_TYPES.values() else kind

    def read(self, name: str) -> Tensor:
        """The tensor, memory-mapped."""
        if self._read > REMAP_AFTER:
            self._open()
        tensor: Tensor = self._mapped.get_tensor(name)
        self._read += tensor.nbytes
        return tensor


class Pickle:
    """A file that torch.save wrote."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._tensors = _read_pickle(file)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def unreadable_type(self, name: str) -> str | None:
        """The type of a tensor where it is none that weights may have."""
        tensor = self._tensors[name]
        if tensor.layout != torch.strided or tensor.is_meta:
            return f"{tensor.layout} on {tensor.device}"
        return None if tensor.dtype in WEIGHT_TYPES else str(tensor.dtype)

    def read(self, name: str) -> Tensor:
        """The tensor, memory-mapped where the file allows."""
        return self._tensors[name]


TensorFile = Safetensors | Pickle


def open_tensors(file: Path) -> TensorFile:
    """Open a file of tensors by its suffix.

    Raises:
        UserError: a Git LFS pointer, a truncated file, or a pickle that holds no named tensors, or code.
    """
    refuse_pointer(file)
    return Pickle(file) if file.suffix == ".bin" else Safetensors(file)


def is_finite(tensor: Tensor) -> bool:
    """A sum is finite only if all its terms are; one that overflowed says nothing yet."""
    total = tensor.sum(dtype=torch.float32 if tensor.dtype != torch.float64 else None)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def _read_pickle(file: Path) -> dict[str, Tensor]:
    """Read a pickle with torch's weights-only reader, which runs nothing that stands in it."""
    import zipfile

    try:
        mapped = zipfile.is_zipfile(file)  # the format before torch 1.6 cannot be memory-mapped
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a broken pickle can fail in any way
        raise UserError(
            f"{file} is refused: it is broken or holds more than weights, and nothing in it was run "
            f"({one_line(error, 120)}); convert it to model.safetensors on a machine where you trust it"
        ) from None
    if weights := _named_tensors(content):
        return weights
    nested = {
        key: weights for key in NESTED_IN if isinstance(content, dict) and (weights := _named_tensors(content.get(key)))
    }
    if len(nested) > 1:
        raise UserError(f"{file} holds several sets of weights ({', '.join(nested)}): save one of them alone")
    if not nested:
        raise UserError(f"{file} holds something else than named weights")
    return nested.popitem()[1]


def _named_tensors(content: object) -> dict[str, Tensor]:
    """The tensors with a name; numbers beside them, as the step of a training, are no weights."""
    entries = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in entries if isinstance(name, str) and isinstance(value, Tensor)}
