"""From a model's name to its files, and from config.json to its shape. All of it without torch, whose import takes a
second: a name that is wrong is refused before."""

from __future__ import annotations

import re
from pathlib import Path

from gpt2tg.checkpoint.adapters import adapter_file, base_name, is_adapter
from gpt2tg.checkpoint.hub import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    CONFIG_FILES,
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    WEIGHT_FILES,
    fetch_model,
    vocabulary_among,
)
from gpt2tg.checkpoint.weight_files import find_weights
from gpt2tg.errors import UserError
from gpt2tg.io.lfs import refuse_pointer
from gpt2tg.options import BUNDLED_MODEL

BUNDLED_DIRECTORY = Path(__file__).resolve().parent.parent / "bundled" / BUNDLED_MODEL


def is_directory(name: str) -> bool:
    """Whether the name of a model is that of a directory here."""
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):  # a name too long, a home that is not known
        return False


def find_checkpoint(name: str, option: str = "model_name") -> Path:
    """The directory of a model: the bundled one, a local one, or one of the hub.

    A directory without a model of its own but with `checkpoint-N` folders means the newest of them.

    Args:
        name: what the user wrote after the flag `option`.

    Raises:
        UserError: there is no such model; the message says what was found instead. Or its weights are not there, or a
            file is a Git LFS pointer.
    """
    try:
        path = Path(name).expanduser()
        if name == BUNDLED_MODEL and not path.is_dir():
            return BUNDLED_DIRECTORY
        if path.is_dir():
            return _inside(path, option)
        if path.exists():
            raise UserError(f"{name} is a file: give the directory that holds config.json and the weights", option)
    except (OSError, RuntimeError) as error:  # a name too long, a home that is not known
        raise UserError(f"{name[:100]} cannot be looked at: {error}", option) from None
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise UserError(f"{name} does not exist: give a directory that holds a model", option)
    if (parent := path.parent) != Path() and parent.is_dir():  # no hub name: its first half is a directory here
        steps = ", ".join(step.name for step in numbered_checkpoints(parent)) or "no checkpoint-N"
        raise UserError(f"{name} does not exist: {parent} holds {steps}", option)
    return fetch_model(name, option)


def _inside(directory: Path, option: str) -> Path:
    if (directory / "config.json").is_file() or is_adapter(directory):
        return _checked(directory)
    steps = numbered_checkpoints(directory)
    if steps:
        return _checked(steps[-1])
    found = sorted(path.name for path in directory.iterdir())
    listing = ", ".join(found[:6]) + (", ..." if len(found) > 6 else "") if found else "nothing"
    within = sorted(
        {str(file.parent) for name in ("config.json", ADAPTER_CONFIG) for file in directory.glob(f"*/{name}")}
    )
    hint = f"; it holds models in folders: give {' or '.join(within[:3])}" if within else ""
    raise UserError(f"{directory} holds no model: config.json is missing, found {listing}{hint}", option)


def _checked(directory: Path) -> Path:
    """The directory, once its weights are there and no file that is read is a Git LFS pointer."""
    there = {path.name for path in directory.iterdir()}
    unread = set(VOCABULARY_FILES).difference(vocabulary_among(there) or VOCABULARY_FILES)
    for name in (*CONFIG_FILES, *TOKENIZER_FILES, ADAPTER_CONFIG):
        if name not in unread:
            refuse_pointer(directory / name)
    if is_adapter(directory):
        adapter_file(directory)
    else:
        find_weights(directory)
    return directory


def numbered_checkpoints(directory: Path) -> list[Path]:
    """The `checkpoint-N` folders of a training run that hold a model, oldest first."""
    numbers = {
        int(match[1]): path
        for path in directory.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
        and any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG))
        and any((path / name).is_file() for name in (*WEIGHT_FILES, ADAPTER_WEIGHTS, ADAPTER_PICKLE))
    }
    return [numbers[step] for step in sorted(numbers)]


def base_directory(adapter: Path) -> Path:
    """The directory of the model that an adapter was trained on.

    Raises:
        UserError: it cannot be found.
    """
    name = base_name(adapter)
    try:
        base = find_checkpoint(name)
    except UserError as error:
        raise UserError(f"{adapter} is an adapter for {name}, which cannot be had: {error.message}") from None
    if base.resolve() == adapter.resolve():
        raise UserError(f"{adapter} is an adapter for itself: it cannot be read")
    return base
