"""A model on disk, resolved from its name. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gpt2tg.checkpoint.adapters import base_name, is_adapter
from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.file_names import ADAPTER_CONFIG, ADAPTER_DIRECTORY, complete_vocabulary
from gpt2tg.checkpoint.find import base_directory, find_directory, is_directory
from gpt2tg.checkpoint.runs import choose_checkpoint
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tuned_settings import Settings, read_tuned_settings
from gpt2tg.errors import UserError

# The sizes that a model must have in common with an adapter.
COMMON_SIZES = ("n_embd", "n_layer", "n_head", "n_inner", "n_positions")

# The flag that adapters come from.
ADAPTER_OPTION = "adapter"


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: found and checked once by `resolve_checkpoint`, then passed on. Its weights are not read yet."""

    name: str
    """What the user calls the model; with `--checkpoint`, the directory that was chosen."""
    directory: Path
    shape: ModelShape
    base: Checkpoint | None = None
    """The model that the adapter in `directory` was trained on; None for a whole model."""
    option: str = "model_name"
    """The flag that the name came from, for messages."""
    is_local: bool = True
    """Whether the name is a directory on this machine, not a model of the hub or the bundled one."""

    @cached_property
    def tuned_settings(self) -> Settings:
        """The settings that `--tune --apply` saved in the checkpoint; empty without any, and for models of the hub.

        Raises:
            UserError: they are broken.
        """
        return read_tuned_settings(self.directory) if self.is_local else {}

    @property
    def tokenizer_directory(self) -> Path:
        """The directory that holds the tokenizer: that of the base model, unless an adapter has one of its own."""
        has_own = complete_vocabulary({path.name for path in self.directory.iterdir() if path.is_file()})
        return self.directory if has_own or self.base is None else self.base.tokenizer_directory

    @property
    def without_adapters(self) -> Checkpoint:
        """The model without the adapters that `--adapter` applies to it."""
        return self.base.without_adapters if self.base is not None and self.option == ADAPTER_OPTION else self

    @property
    def notes(self) -> list[str]:
        """What the user should know about the adapters."""
        if self.base is None or self.option != ADAPTER_OPTION:
            return []
        name, base = base_name(self.directory), self.without_adapters
        is_own = name == base.name or (is_directory(name) and Path(name).resolve() == base.directory.resolve())
        note = f"{self.directory} was trained on {name}, and is now applied to {base.name}"
        return self.base.notes + ([] if is_own else [note])


def resolve_checkpoint(
    name: str,
    option: str = "model_name",
    which: str | None = None,
    adapters: Sequence[str] = (),
    revision: str | None = None,
) -> Checkpoint:
    """Find a model by its name and read its shape. A model of the hub is downloaded if it is not cached.

    Args:
        name: what the user wrote after the flag `option`.
        which: `best`, `last` or a step: that checkpoint of the training run in the directory `name`.
        adapters: LoRA adapters to apply to the model, one after another.
        revision: a branch, a tag or a commit of a model of the hub.

    Raises:
        UserError: the model does not exist, is not complete, or is no GPT-2; the message names the flag or the file.
    """
    if which is not None:
        name = str(choose_checkpoint(name, which))
    is_local, directory = is_directory(name), find_directory(name, option, revision)
    checkpoint = replace(read_checkpoint(directory), name=name, option=option, is_local=is_local)
    return with_adapters(checkpoint, adapters)


def with_adapters(checkpoint: Checkpoint, names: Sequence[str], option: str = ADAPTER_OPTION) -> Checkpoint:
    """Return a model with LoRA adapters applied to it, one after another.

    Args:
        names: directories, or names on the hub. The output directory of a training run stands for its adapter.
        option: the flag that the names came from, for messages.

    Raises:
        UserError: an adapter does not exist, is broken, or was trained on a model of other sizes.
    """
    for name in names:
        directory = find_adapter(name, option)
        shape = _adapted_shape(directory, checkpoint, option)
        called = f"{checkpoint.name} with {name}"
        checkpoint = Checkpoint(called, directory, shape, checkpoint, ADAPTER_OPTION, is_directory(name))
    return checkpoint


def find_adapter(name: str, option: str = ADAPTER_OPTION) -> Path:
    """Return the directory of a LoRA adapter. The output directory of a training run stands for its adapter.

    Raises:
        UserError: it does not exist, or is no adapter.
    """
    try:
        directory = find_directory(name, option)
    except UserError as error:
        what = "holds no adapter" if is_directory(name) else "cannot be found, here or on the hub"
        raise UserError(f"{name} {what}: give a directory that holds {ADAPTER_CONFIG}", option) from error
    for place in (directory, directory / ADAPTER_DIRECTORY):
        if is_adapter(place):
            return place
    raise UserError(f"{name} holds a whole model and no adapter: give the directory of an adapter", option)


def _adapted_shape(directory: Path, base: Checkpoint, option: str) -> ModelShape:
    """Return the shape of a model with the adapter in a directory."""
    shape = read_shape(directory, base.shape)
    for name in COMMON_SIZES:
        if (theirs := getattr(shape, name)) != (ours := getattr(base.shape, name)):
            raise UserError(
                f"{directory} does not fit {base.name}, whose {name} is {ours}: it was trained on "
                f"{base_name(directory)}, whose {name} is {theirs}",
                option,
            )
    return replace(base.shape, vocab_size=shape.vocab_size, end_ids=shape.end_ids)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read the shape of the model in a directory, and find the model that it adapts if it is an adapter.

    Raises:
        UserError: config.json is broken or of another architecture, or an adapter's model cannot be found.
    """
    base = read_checkpoint(base_directory(directory)) if is_adapter(directory) else None
    shape = read_shape(directory, base.shape if base else None)
    return Checkpoint(str(directory), directory, shape, base)
