"""Find a dataset by its name: a local folder, or else a dataset of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2tg.errors import UserError
from gpt2tg.io.json_files import read_json
from gpt2tg.training.data.dataset_files import TRAINING_SPLIT, DatasetFiles, resolve_splits

# What `save_to_disk` writes into the folder of a dataset with splits, and into that of each split.
SAVED_DATASET, SAVED_SPLIT = "dataset_dict.json", "state.json"


def split_name(name: str) -> tuple[str, str | None]:
    """Split NAME:CONFIG. A folder may have a colon in its name, such as that after the letter of a drive."""
    if Path(name).expanduser().exists():
        return name, None
    dataset, colon, config = name.rpartition(":")
    return (dataset, config) if colon and dataset and config and len(dataset) > 1 else (name, None)


def find_dataset(given: str, revision: str | None) -> DatasetFiles:
    """Return the files of a dataset. Those of the hub are not downloaded yet.

    Args:
        given: the name on the hub or a local folder, and maybe `:CONFIG`.
        revision: a branch, tag or commit on the hub; None for its newest commit.

    Raises:
        UserError: there is no such dataset, configuration or revision, access is denied, or the hub cannot be reached.
    """
    name, config = split_name(given)
    folder = Path(name).expanduser()
    if folder.is_file():
        raise UserError(f"{name} is a file: give it with --train_file", "dataset_name")
    if not folder.is_dir():
        from gpt2tg.training.data.hub_datasets import find_on_hub  # takes longer to import than all else

        return find_on_hub(name, config, revision)
    if revision is not None:
        why = f"{name} is a local folder, which has no revisions"
        raise UserError(f"{revision}: {why}: leave the flag out", "dataset_revision")
    splits = _saved_splits(folder) or resolve_splits(str(folder), name, config)
    return DatasetFiles(name, config, None, splits)


def _saved_splits(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the files of a dataset that `save_to_disk` wrote; nothing if the folder holds no such dataset."""
    if (folder / SAVED_DATASET).is_file():
        return {name: _saved_files(folder / name) for name in _read_record(folder / SAVED_DATASET, "splits")}
    return {TRAINING_SPLIT: _saved_files(folder)} if (folder / SAVED_SPLIT).is_file() else {}


def _saved_files(folder: Path) -> tuple[str, ...]:
    return tuple(str(folder / entry["filename"]) for entry in _read_record(folder / SAVED_SPLIT, "_data_files"))


def _read_record(path: Path, key: str) -> list[Any]:
    """Return what `save_to_disk` wrote under a key.

    Raises:
        UserError: the file is damaged, or another program wrote it.
    """
    try:
        found = read_json(path)[key]
    except (OSError, UserError, KeyError):
        found = None
    if not isinstance(found, list):
        raise UserError(f"{path} is not as save_to_disk writes it: save it again", "dataset_name")
    return found
