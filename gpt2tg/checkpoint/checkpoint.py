"""A model on disk, resolved from its name. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gpt2tg.checkpoint.adapters import is_adapter
from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.find import base_directory, find_directory, is_directory
from gpt2tg.checkpoint.runs import choose_checkpoint
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tuned_settings import Settings, read_tuned_settings


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


def resolve_checkpoint(
    name: str, option: str = "model_name", which: str | None = None, revision: str | None = None
) -> Checkpoint:
    """Find a model by its name and read its shape. A model of the hub is downloaded if it is not cached.

    Args:
        name: what the user wrote after the flag `option`.
        which: `best`, `last` or a step: that checkpoint of the training run in the directory `name`.
        revision: a branch, a tag or a commit of a model of the hub.

    Raises:
        UserError: the model does not exist, is not complete, or is no GPT-2; the message names the flag or the file.
    """
    if which is not None:
        name = str(choose_checkpoint(name, which))
    is_local, directory = is_directory(name), find_directory(name, option, revision)
    return replace(read_checkpoint(directory), name=name, option=option, is_local=is_local)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read the shape of the model in a directory, and find the model that it adapts if it is an adapter.

    Raises:
        UserError: config.json is broken or of another architecture, or an adapter's model cannot be found.
    """
    base = read_checkpoint(base_directory(directory)) if is_adapter(directory) else None
    shape = read_shape(directory, base.shape if base else None)
    return Checkpoint(str(directory), directory, shape, base)
