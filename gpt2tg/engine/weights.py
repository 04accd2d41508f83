"""From a model's files to weights that are known to be whole."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

import torch
from torch import Tensor

from gpt2tg.engine.adapters import add_adapter, is_adapter
from gpt2tg.engine.checkpoints import ModelShape, base_directory, read_json
from gpt2tg.engine.hub import WEIGHT_FILES
from gpt2tg.errors import UserError, one_line

# What weights may be stored as; they are computed with in 32 bits.
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Bytes of a file of weights that are read before it is mapped anew.
REMAP_AFTER = 32_000_000


def read_weights(directory: Path, shape: ModelShape) -> dict[str, Tensor]:
    """The tensors of a GPT-2 by their plain names (`h.0.attn.c_attn.weight`), memory-mapped where the file allows.

    Raises:
        UserError: as `stream_weights`.
    """
    return dict(stream_weights(directory, shape))


def stream_weights(
    directory: Path, shape: ModelShape, known_finite: Container[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `read_weights` one by one: who does not keep them never holds the whole file in memory.

    Names and shapes are compared with `shape` at once, before any weight is asked for. Those of an adapter are the
    weights of its model with the adapter added.

    Args:
        known_finite: names of tensors that were looked through before. They are given without being read.

    Raises:
        UserError: no weights, weights that are cut, miss a layer, have another shape or are not numbers,
            or a pickle that holds more than weights. Nothing in such a pickle is run.
    """
    if is_adapter(directory):
        return add_adapter(stream_weights(base_directory(directory), shape), directory)
    files = _weight_files(directory)
    opened = [_Pickle(file) if file.suffix == ".bin" else _Safetensors(file) for file in files]
    places = {_plain_name(name): (file, name) for file in opened for name in file.shapes}
    wanted = dict(shape.tensors())
    for name, size in wanted.items():
        if name not in places:
            raise UserError(f"{files[0]} lacks {name}: the model is not whole")
        file, stored = places[name]
        if file.shapes[stored] != size:
            raise UserError(f"{files[0]}: {name} has the shape {file.shapes[stored]}, but config.json says {size}")
    return ((name, _read_tensor(name, *places[name], files[0], name in known_finite)) for name in wanted)


def _read_tensor(name: str, file: _Safetensors | _Pickle, stored: str, where: Path, known_finite: bool) -> Tensor:
    tensor = file.read(stored)
    if tensor.dtype not in WEIGHT_TYPES or tensor.layout != torch.strided or tensor.is_meta:
        raise UserError(f"{where}: {name} is of a kind that cannot be computed with ({tensor.dtype})")
    if not known_finite and not _is_finite(tensor):
        raise UserError(f"{where}: {name} holds numbers that are not finite: the model is broken")
    return tensor


def _is_finite(tensor: Tensor) -> bool:
    """A sum is finite only if all its terms are; one that overflowed says nothing yet."""
    total = tensor.sum(dtype=torch.float32 if tensor.dtype != torch.float64 else None)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def _plain_name(name: str) -> str:
    return name.removeprefix("transformer.")


def _weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights, safetensors first."""
    whole, index, pickle = (directory / name for name in WEIGHT_FILES)
    if whole.is_file():
        return [whole]
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise UserError(f"{index} does not say which file holds which weights")
        parts = [directory / Path(name).name for name in sorted(set(names.values()))]
        missing = [part.name for part in parts if not part.is_file()]
        if missing:
            raise UserError(f"{directory} lacks {missing[0]}: the model is not whole")
        return parts
    if pickle.is_file():
        return [pickle]
    raise UserError(f"{directory} holds no weights: expected model.safetensors (or pytorch_model.bin)")


class _Safetensors:
    """A memory-mapped file of tensors, mapped anew now and then so that what was read need not stay in memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._open()
        self.shapes = {name: tuple(self._mapped.get_slice(name).get_shape()) for name in self._mapped.keys()}  # noqa: SIM118

    def _open(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._mapped = safe_open(self._file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self._file} is cut or broken: {error}") from None
        self._read = 0

    def read(self, name: str) -> Tensor:
        if self._read > REMAP_AFTER:
            self._open()
        tensor: Tensor = self._mapped.get_tensor(name)
        self._read += tensor.nbytes
        return tensor


class _Pickle:
    """pytorch_model.bin."""

    def __init__(self, file: Path) -> None:
        self._tensors = _read_pickle(file)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


def _read_pickle(file: Path) -> dict[str, Tensor]:
    """Read pytorch_model.bin with torch's weights-only reader, which runs nothing that stands in it."""
    import zipfile

    try:
        mapped = zipfile.is_zipfile(file)  # the format before torch 1.6 cannot be memory-mapped
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a broken pickle can fail in any way
        raise UserError(
            f"{file} is refused: it is broken or holds more than weights, and nothing in it was run "
            f"({one_line(error, 120)}); convert it to model.safetensors on a machine where you trust it"
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise UserError(f"{file} holds something else than named weights")
    return content
