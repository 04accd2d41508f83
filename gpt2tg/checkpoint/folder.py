"""The models and adapters in a folder, to choose from. Nothing here uses the network or needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2tg.checkpoint.adapters import base_name, base_revision, is_adapter
from gpt2tg.checkpoint.checkpoint import Checkpoint, resolve_checkpoint, with_adapters
from gpt2tg.checkpoint.find import is_directory, numbered_checkpoints
from gpt2tg.checkpoint.hub import is_cached
from gpt2tg.errors import UserError
from gpt2tg.options import BUNDLED_MODEL


@dataclass(frozen=True)
class FoundModel:
    """A model in a folder."""

    name: str
    """The name of its directory."""
    kind: Literal["model", "adapter"]
    note: str
    """What it is in a few words, or why it cannot be loaded."""
    checkpoint: Checkpoint | None
    """None if it cannot be loaded."""


def models_in(folder: Path, known: Sequence[Checkpoint] = ()) -> list[FoundModel]:
    """Return the models in the directories of a folder: whole models, training runs and adapters.

    Args:
        known: models elsewhere that an adapter may have been trained on.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        directories = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{folder} cannot be read: {reason}", "models_folder") from None
    return [found for path in directories if (found := _found(path, folder, known)) is not None]


def _found(path: Path, folder: Path, known: Sequence[Checkpoint]) -> FoundModel | None:
    """Return the model in a directory; None if it holds none."""
    is_run = not (path / "config.json").is_file() and bool(numbered_checkpoints(path))
    if not (is_adapter(path) or is_run or (path / "config.json").is_file()):
        return None
    kind: Literal["model", "adapter"] = "adapter" if is_adapter(path) else "model"
    try:
        if kind == "adapter":
            checkpoint, note = _adapted(path, folder, known), f"an adapter for {base_name(path)}"
        else:
            checkpoint = resolve_checkpoint(str(path), "models_folder")
            shape = checkpoint.shape
            note = f"{shape.n_layer} layers, {shape.n_positions:,} tokens of context"
            note = f"the newest checkpoint of a training run: {note}" if is_run else note
    except (UserError, OSError) as error:
        return FoundModel(path.name, kind, str(error), None)
    return FoundModel(path.name, kind, note, checkpoint)


def _adapted(path: Path, folder: Path, known: Sequence[Checkpoint]) -> Checkpoint:
    """Return an adapter with the model that it was trained on, which may have moved into the folder.

    Raises:
        UserError: that model is not here, or they do not fit.
    """
    name = base_name(path)
    beside = folder / Path(name).name
    for model in known:
        if name in (model.name, str(model.directory)):
            return with_adapters(model, [str(path)])
    if is_directory(name) and is_adapter(base := Path(name).expanduser()) and base.resolve() != path.resolve():
        return with_adapters(_adapted(base, folder, known), [str(path)])
    if is_directory(name) or name == BUNDLED_MODEL or is_cached(name, base_revision(path, name)):
        return resolve_checkpoint(str(path), "models_folder")
    if beside.is_dir() and beside.resolve() != path.resolve():
        return with_adapters(resolve_checkpoint(str(beside), "models_folder"), [str(path)])
    raise UserError(f"needs the model {name}, which is not here: put it into the folder")
