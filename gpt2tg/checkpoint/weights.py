"""Read a GPT-2's weights from its files, checked: names, shapes, types, finite values."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.file_names import ADAPTER_CONFIG
from gpt2tg.checkpoint.lora_weights import add_adapter
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tensor_files import TensorFile, is_finite, open_tensors
from gpt2tg.checkpoint.tensor_names import EMBEDDING, HEAD, MASKS, stored_names
from gpt2tg.checkpoint.weight_files import find_weights
from gpt2tg.errors import UserError

# Names that a note lists before it says "...".
LISTED_NAMES = 3


@dataclass
class Weights:
    """The tensors of a GPT-2 by their plain names. Each is read when the iteration reaches it.

    A head that differs from the token embedding comes last, even if config.json says that they are tied.
    """

    tensors: Iterator[tuple[str, Tensor]]
    notes: list[str] = field(default_factory=list)
    """What the user should know about the files. Complete only after all tensors were read."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self.tensors


def read_weights(directory: Path, shape: ModelShape) -> dict[str, Tensor]:
    """Return all tensors of a GPT-2 by their plain names, such as `h.0.attn.c_attn.weight`.

    They are memory-mapped if the format of the file allows it.

    Raises:
        UserError: as `stream_weights`.
    """
    return dict(stream_weights(Checkpoint(str(directory), directory, shape)))


def stream_weights(checkpoint: Checkpoint, known_finite: Container[str] = ()) -> Weights:
    """Return the tensors of a GPT-2 one by one, so that the caller need not hold all of them in memory.

    Names, shapes and types are checked against the checkpoint's shape immediately; values, when a tensor is reached.
    For an adapter, the tensors are those of its model with the adapter applied.

    Args:
        known_finite: names of tensors that were checked before. They are returned without a check of their values.

    Raises:
        UserError: the weights are missing, truncated or incomplete, have another shape or type, or are not finite; or
            a pickle holds more than weights. No code in a pickle is run.
    """
    directory, shape = checkpoint.directory, checkpoint.shape
    if checkpoint.base is not None:
        weights = stream_weights(checkpoint.base)
        return Weights(add_adapter(weights, directory, shape), weights.notes)
    files, shards = find_weights(directory)
    stored = _StoredTensors([open_tensors(file) for file in files], shards, shape)
    for name, size in shape.tensors():
        stored.check(name, size)
    notes = stored.notes_on_unused()
    if (directory / ADAPTER_CONFIG).is_file():
        notes.append(
            f"{directory / ADAPTER_CONFIG} is not used, because the directory holds the weights of a whole model"
        )
    return Weights(_read_all(stored, shape, known_finite, notes), notes)


def _read_all(
    stored: _StoredTensors, shape: ModelShape, known_finite: Container[str], notes: list[str]
) -> Iterator[tuple[str, Tensor]]:
    for name, _ in shape.tensors():
        yield name, stored.read(name, name in known_finite)
    if shape.tied and stored.has_separate_head():
        notes.append(
            f"{stored.where}: {HEAD} differs from {EMBEDDING}, although config.json says that they are tied: "
            f"the stored {HEAD} is used"
        )
        yield HEAD, stored.read(HEAD)


class _StoredTensors:
    """The tensors in the files of a checkpoint, by their plain names."""

    def __init__(self, files: list[TensorFile], shards: dict[str, str], shape: ModelShape) -> None:
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
            plain: [(file, name) for name in names for file in _files_with(name, files, shards)]
            for plain, names in stored_names(dict.fromkeys(self._names), known).items()
        }
        if shape.tied and EMBEDDING not in self._places and HEAD in self._places:
            self._places[EMBEDDING] = self._places.pop(HEAD)  # the shared tensor is stored under its other name

    def check(self, name: str, size: tuple[int, ...]) -> None:
        """Refuse a tensor that is missing, has another shape or type, or is stored twice with different values."""
        places = self._places.get(name)
        if not places:
            raise UserError(f"{self.where}: {name} is missing: the model is incomplete. Copy or download it again")
        for file, stored in places:
            if file.shapes[stored] != size:
                raise UserError(
                    f"{file.file}: {name} has the shape {file.shapes[stored]}, but config.json says {size}: "
                    "use the weights and the config.json of the same model"
                )
            if kind := file.unreadable_type(stored):
                raise UserError(
                    f"{file.file}: {name} has the type {kind}, which is not supported: save the model in 16 or 32 bits"
                )
        first, stored = places[0]
        for file, other in places[1:]:
            if not _are_equal(first.read(stored), file.read(other)):
                raise UserError(
                    f"{file.file}: {name} is stored twice with different values, as {stored} in {first.file.name} "
                    f"and as {other} in {file.file.name}: remove one of them"
                )

    def read(self, name: str, known_finite: bool = False) -> Tensor:
        """Return a tensor that `check` accepted.

        Raises:
            UserError: its values are not finite.
        """
        file, stored = self._places[name][0]
        tensor = file.read(stored)
        if not known_finite and not is_finite(tensor):
            raise UserError(
                f"{file.file}: {name} holds numbers that are not finite: the model is broken. "
                "Use an earlier checkpoint or another copy"
            )
        return tensor

    def has_separate_head(self) -> bool:
        """Whether a head is stored that differs from the token embedding.

        Raises:
            UserError: the head has another shape or type.
        """
        if HEAD not in self._places:
            return False
        self.check(HEAD, (self._shape.vocab_size, self._shape.n_embd))
        head, embedding = (file.read(name) for file, name in (self._places[HEAD][0], self._places[EMBEDDING][0]))
        return not _are_equal(head, embedding)

    def notes_on_unused(self) -> list[str]:
        """Return a line that names the stored tensors that GPT-2 does not have, if any. Causal masks do not count."""
        used = {stored for places in self._places.values() for _, stored in places}
        unused = [name for name in self._names if name not in used and not MASKS.search(name)]
        if not unused:
            return []
        names = ", ".join(unused[:LISTED_NAMES]) + (", ..." if len(unused) > LISTED_NAMES else "")
        return [f"{self.where}: tensors that GPT-2 does not have are not used: {names} ({len(unused)} in all)"]


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same values, whatever their precision."""
    if one.dtype != other.dtype:
        one, other = one.float(), other.float()
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def _files_with(name: str, files: list[TensorFile], shards: dict[str, str]) -> list[TensorFile]:
    """Return the files that hold a stored tensor: only the one that the index of shards names if it does hold it."""
    holders = [file for file in files if name in file.shapes]
    return [file for file in holders if file.file.name == shards.get(name)] or holders
