"""Find the directory of a model by its name. Nothing here needs torch, so that a wrong name is refused at once."""

from __future__ import annotations

import re
from pathlib import Path

from gpt2tg.checkpoint.adapters import adapter_file, base_name, base_revision, is_adapter
from gpt2tg.checkpoint.file_names import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    CONFIG_FILES,
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    WEIGHT_FILES,
    complete_vocabulary,
)
from gpt2tg.checkpoint.hub import fetch_model
from gpt2tg.checkpoint.weight_files import find_weights
from gpt2tg.errors import UserError
from gpt2tg.io.lfs import refuse_pointer
from gpt2tg.options import BUNDLED_MODEL

BUNDLED_DIRECTORY = Path(__file__).resolve().parent.parent / "bundled" / BUNDLED_MODEL

# A name on the hub: an owner, if any, and the name of the model.
HUB_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"

# Files and folders that an error message lists before it says "...".
LISTED_FILES, LISTED_FOLDERS = 6, 3


def is_directory(name: str) -> bool:
    """Whether the name of a model is a directory on this machine."""
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):  # the name is too long, or its home directory is unknown
        return False


def find_directory(name: str, option: str = "model_name", revision: str | None = None) -> Path:
    """Return the directory of a model: the bundled one, a local one, or a snapshot of the hub, downloaded if needed.

    For an output directory that holds `checkpoint-N` folders but no model of its own, it is the newest of them.

    Args:
        name: what the user wrote after the flag `option`.
        revision: of a model of the hub: a branch, a tag or a commit.

    Raises:
        UserError: the model does not exist or has no revisions, its weights are missing, or one of its files is a Git
            LFS pointer.
    """
    if not name:
        raise UserError("is empty: give the name or the directory of a model", option)
    try:
        path = Path(name).expanduser()
        if revision is not None and (name == BUNDLED_MODEL or path.exists()):
            raise UserError(f"{revision} is for models of the hub, and {name} is none: leave it out", "revision")
        if name == BUNDLED_MODEL and not path.is_dir():
            return BUNDLED_DIRECTORY
        if path.is_dir():
            return _model_in(path, option)
        if path.exists():
            raise UserError(f"{name} is a file: give the directory that holds config.json and the weights", option)
    except (OSError, RuntimeError) as error:  # the name is too long, or its home directory is unknown
        raise UserError(f"{name[:100]} cannot be looked at: {error}", option) from None
    if not re.fullmatch(HUB_NAME, name):
        raise UserError(f"{name} does not exist: give a directory that holds a model", option)
    if (parent := path.parent) != Path() and parent.is_dir():  # a local path, although it has the form of a hub name
        steps = ", ".join(step.name for step in numbered_checkpoints(parent)) or "no checkpoint-N"
        raise UserError(f"{name} does not exist: {parent} holds {steps}", option)
    return fetch_model(name, option, revision)


def _model_in(directory: Path, option: str) -> Path:
    """Return the directory itself if it holds a model, else its newest `checkpoint-N`."""
    if (directory / "config.json").is_file() or is_adapter(directory):
        return _checked(directory)
    steps = numbered_checkpoints(directory)
    if steps:
        return _checked(steps[-1])
    found = sorted(path.name for path in directory.iterdir())
    listing = ", ".join(found[:LISTED_FILES]) + (", ..." if len(found) > LISTED_FILES else "") if found else "nothing"
    within = sorted(
        {str(file.parent) for name in ("config.json", ADAPTER_CONFIG) for file in directory.glob(f"*/{name}")}
    )
    hint = f"; it holds models in folders: give {' or '.join(within[:LISTED_FOLDERS])}" if within else ""
    raise UserError(f"{directory} holds no model: config.json is missing, found {listing}{hint}", option)


def _checked(directory: Path) -> Path:
    """Return the directory after checking that its weights exist and that no file we read is a Git LFS pointer."""
    names = {path.name for path in directory.iterdir()}
    unread = set(VOCABULARY_FILES).difference(complete_vocabulary(names) or VOCABULARY_FILES)
    for name in (*CONFIG_FILES, *TOKENIZER_FILES, ADAPTER_CONFIG):
        if name not in unread:
            refuse_pointer(directory / name)
    for file in [adapter_file(directory)] if is_adapter(directory) else find_weights(directory).files:
        refuse_pointer(file)
    return directory


def numbered_checkpoints(directory: Path) -> list[Path]:
    """Return the `checkpoint-N` folders of a training run that hold a model, oldest first."""
    numbers = {
        int(match[1]): path
        for path in directory.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
        and any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG))
        and any((path / name).is_file() for name in (*WEIGHT_FILES, ADAPTER_WEIGHTS, ADAPTER_PICKLE))
    }
    return [numbers[step] for step in sorted(numbers)]


def base_directory(adapter: Path) -> Path:
    """Return the directory of the model that an adapter was trained on.

    Raises:
        UserError: that model cannot be found, or is the adapter itself.
    """
    name = base_name(adapter)
    try:
        base = find_directory(name, revision=base_revision(adapter, name))
    except UserError as error:
        raise UserError(f"{adapter} is an adapter for {name}, which cannot be found: {error.message}") from None
    if base.resolve() == adapter.resolve():
        raise UserError(f"{adapter} is an adapter for itself: name its model in {ADAPTER_CONFIG}")
    return base
