"""From a model's files to weights that are known to be whole."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gpt2tg.checkpoint.adapters import add_adapter
from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.hub import ADAPTER_CONFIG
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tensor_files import TensorFile, open_tensors
from gpt2tg.checkpoint.tensor_files import is_finite as _is_finite
from gpt2tg.checkpoint.weight_files import EMBEDDING, HEAD, MASKS, find_weights, stored_names
from gpt2tg.errors import UserError

# Names that a message lists before it says "...".
LISTED = 3


@dataclass
class Weights:
    """The tensors of a GPT-2 by their plain names, read one by one while they are iterated.

    A head that differs from the token embedding comes last, also where config.json says that they are the same.
    """

    tensors: Iterator[tuple[str, Tensor]]
    notes: list[str] = field(default_factory=list)
    """What the user should know about the files; complete once all tensors were read."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self.tensors


def read_weights(directory: Path, shape: ModelShape) -> dict[str, Tensor]:
    """The tensors of a GPT-2 by their plain names (`h.0.attn.c_attn.weight`), memory-mapped where the file allows.

    Raises:
        UserError: as `stream_weights`.
    """
    return dict(stream_weights(Checkpoint(str(directory), directory, shape)))


def stream_weights(checkpoint: Checkpoint, known_finite: Container[str] = ()) -> Weights:
    """The tensors of `read_weights` one by one: who does not keep them never holds the whole file in memory.

    Names, shapes and types are checked against the checkpoint's shape at once, before any weight is asked for. Those
    of an adapter are the weights of its model with the adapter added.

    Args:
        known_finite: names of tensors that were looked through before. They are given without being read.

    Raises:
        UserError: no weights, weights that are cut, miss a layer, have another shape or type or are not numbers,
            or a pickle that holds more than weights. Nothing in such a pickle is run.
    """
    directory, shape = checkpoint.directory, checkpoint.shape
    if checkpoint.base is not None:
        weights = stream_weights(checkpoint.base)
        return Weights(add_adapter(weights, directory, shape), weights.notes)
    files, index = find_weights(directory)
    stored = _Stored([open_tensors(file) for file in files], index, shape)
    wanted = dict(shape.tensors())
    for name, size in wanted.items():
        stored.check(name, size)
    notes = stored.notes_on_others()
    if (directory / ADAPTER_CONFIG).is_file():
        notes.append(f"{directory / ADAPTER_CONFIG}: not used, as the weights of a whole model lie beside it")
    return Weights(_read_all(stored, shape, known_finite, notes), notes)


def _read_all(
    stored: _Stored, shape: ModelShape, known_finite: Container[str], notes: list[str]
) -> Iterator[tuple[str, Tensor]]:
    for name, _ in shape.tensors():
        yield name, stored.read(name, name in known_finite)
    if shape.tied and stored.has_other_head():
        notes.append(
            f"{stored.where}: {HEAD} differs from {EMBEDDING}, though config.json says that they are tied: "
            "the head is used as it is stored"
        )
        yield HEAD, stored.read(HEAD)


class _Stored:
    """The tensors in the files of a checkpoint, by their plain names."""

    def __init__(self, files: list[TensorFile], index: dict[str, str], shape: ModelShape) -> None:
        self.where = files[0].file if len(files) == 1 else files[0].file.parent
        self._shape = shape
        self._names = [name for file in files for name in file.shapes]
        if unmerged := next((name for name in self._names if ".lora_" in name), None):
            raise UserError(
                f"{self.where} holds {unmerged}: an adapter that was not merged into its model. "
                "Merge it with peft (merge_and_unload), or give the adapter's own directory"
            )
        known = {*dict(shape.tensors()), HEAD}
        self._places = {
            plain: [(file, name) for name in names for file in _holders(files, name, index)]
            for plain, names in stored_names(dict.fromkeys(self._names), known).items()
        }
        if shape.tied and EMBEDDING not in self._places and HEAD in self._places:
            self._places[EMBEDDING] = self._places.pop(HEAD)  # the other name of the shared tensor

    def check(self, name: str, size: tuple[int, ...]) -> None:
        """Refuse a tensor that is missing, of another shape or type, or there twice with different values."""
        places = self._places.get(name)
        if not places:
            raise UserError(f"{self.where} lacks {name}: the model is not whole")
        for file, stored in places:
            if file.shapes[stored] != size:
                raise UserError(f"{file.file}: {name} has the shape {file.shapes[stored]}, but config.json says {size}")
            if kind := file.unreadable_type(stored):
                raise UserError(
                    f"{file.file}: {name} is of a kind that cannot be computed with ({kind}): "
                    "save the model in 16 or 32 bits"
                )
        first, stored = places[0]
        for file, other in places[1:]:
            if not _are_equal(first.read(stored), file.read(other)):
                raise UserError(
                    f"{file.file}: {name} is there twice with different values, as {stored} in {first.file.name} "
                    f"and as {other} in {file.file.name}: remove one of them"
                )

    def read(self, name: str, known_finite: bool = False) -> Tensor:
        """A tensor that was checked."""
        file, stored = self._places[name][0]
        tensor = file.read(stored)
        if not known_finite and not _is_finite(tensor):
            raise UserError(f"{file.file}: {name} holds numbers that are not finite: the model is broken")
        return tensor

    def has_other_head(self) -> bool:
        """Whether a head is stored that differs from the token embedding. One that does not fit is refused."""
        if HEAD not in self._places:
            return False
        self.check(HEAD, (self._shape.vocab_size, self._shape.n_embd))
        head, embedding = (file.read(name) for file, name in (self._places[HEAD][0], self._places[EMBEDDING][0]))
        return not _are_equal(head, embedding)

    def notes_on_others(self) -> list[str]:
        """A line that names the tensors which GPT-2 has no use for; masks of old versions need none."""
        used = {stored for places in self._places.values() for _, stored in places}
        others = [name for name in self._names if name not in used and not MASKS.search(name)]
        if not others:
            return []
        names = ", ".join(others[:LISTED]) + (", ..." if len(others) > LISTED else "")
        return [f"{self.where}: not used, as GPT-2 has no such weights: {names} ({len(others)} in all)"]


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, in whatever precision."""
    if one.dtype != other.dtype:
        one, other = one.float(), other.float()
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def _holders(files: list[TensorFile], name: str, index: dict[str, str]) -> list[TensorFile]:
    """The files that hold a stored tensor: the one that the index names, if it does, or all."""
    holders = [file for file in files if name in file.shapes]
    return [file for file in holders if file.file.name == index.get(name)] or holders
