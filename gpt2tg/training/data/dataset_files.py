"""The files of a dataset, by split: those of a local folder, or of the hub at one commit.

`datasets` reads the configurations and splits; no script of a dataset ever runs. The files are then read as if they
had been named one by one, so that everything that holds for files holds for datasets.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gpt2tg.errors import UserError, did_you_mean, one_line
from gpt2tg.io.json_files import read_json

# The splits to validate on, the first that exists.
VALIDATION_SPLITS = ("validation", "valid", "val", "dev")

# The split to train on if none is named.
TRAINING_SPLIT = "train"


@dataclass(frozen=True)
class DatasetFiles:
    """The files of one configuration of a dataset, by split."""

    name: str
    config: str | None
    commit: str | None  # None for a local folder
    splits: Mapping[str, tuple[str, ...]]  # paths on this machine, or in the repository at the commit

    def training_split(self, wanted: str | None) -> str:
        """Return the split to train on: the wanted one, else "train", else the only one.

        Raises:
            UserError: there is no such split, or none is wanted and there are several.
        """
        available = list(self.splits)
        if wanted is not None and wanted not in available:
            if "[" in wanted:
                names = ", ".join(available)
                raise UserError(f"{wanted} is a slice: give the name of a split ({names})", "dataset_split")
            way_out = did_you_mean(wanted, available, f"choose from {', '.join(available)}")
            raise UserError(f"{wanted} is no split of {self.name}: {way_out}", "dataset_split")
        if wanted is None and TRAINING_SPLIT not in available and len(available) > 1:
            raise UserError(f"is required: {self.name} has the splits {', '.join(available)}", "dataset_split")
        return wanted or (TRAINING_SPLIT if TRAINING_SPLIT in available else available[0])

    def validation_split(self, training_split: str) -> str | None:
        """Return the dataset's own validation split, if it has one that is not trained on."""
        return next((name for name in VALIDATION_SPLITS if name in self.splits and name != training_split), None)


@dataclass(frozen=True)
class DatasetOrigin:
    """Which dataset a run was trained on, for run.json."""

    name: str
    config: str | None
    commit: str | None
    split: str
    validation_split: str | None

    def as_record(self) -> dict[str, Any]:
        """Return this as JSON."""
        return asdict(self)


def resolve_splits(source: str, name: str, config: str | None, **settings: Any) -> dict[str, tuple[str, ...]]:
    """Return the paths or addresses of the files of each split, as `datasets` finds them. Downloads no data.

    Args:
        source: a local folder, or the address of a dataset on the hub.
        name: what the user calls the dataset.
        settings: for `load_dataset_builder`.

    Raises:
        UserError: there is no such configuration, none was named although there are several, or there are no files.
        Others: on trouble with the hub.
    """
    import datasets

    from gpt2tg.training.data.quiet_datasets import quiet_datasets

    with quiet_datasets(), tempfile.TemporaryDirectory(prefix="gpt2tg-") as cache:
        try:
            builder = datasets.load_dataset_builder(source, config, cache_dir=cache, **settings)
        except FileNotFoundError as error:  # also of a pattern without a match
            if isinstance(error, datasets.exceptions.DatasetNotFoundError):
                raise
            raise UserError(
                f"{name} has no files that can be read ({one_line(error)}): put .txt, .jsonl or .parquet files into it",
                "dataset_name",
            ) from None
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            way_out = "put data files, such as .parquet or .jsonl, into a folder of their own"
            if "://" in source:
                way_out = "use a version with data files, such as --dataset_revision refs/convert/parquet"
            raise UserError(
                f"{name} is made by a script, and scripts of datasets never run here: {way_out}", "dataset_name"
            ) from None
        except ValueError as error:
            raise _config_error(source, name, config, settings) or _unreadable(name, error) from None
    files = builder.config.data_files or {}
    return {str(split): tuple(map(str, paths)) for split, paths in files.items()}


def _config_error(source: str, name: str, config: str | None, settings: dict[str, Any]) -> UserError | None:
    """Return the error if the configuration is missing or unknown."""
    import datasets

    available = datasets.get_dataset_config_names(source, **settings)
    if config is None and len(available) > 1:
        return UserError(
            f"{name} has the configurations {', '.join(available[:20])}: choose one with {name}:{available[0]}",
            "dataset_name",
        )
    if config is not None and config not in available:
        way_out = did_you_mean(config, available, f"choose from {', '.join(available[:20])}")
        return UserError(f"{name}:{config}: {name} has no configuration {config}: {way_out}", "dataset_name")
    return None


def _unreadable(name: str, error: Exception) -> UserError:
    return UserError(f"{name} cannot be read ({one_line(error)})", "dataset_name")


def write_record(path: Path, files: DatasetFiles) -> None:
    """Remember the files of a dataset of the hub, for runs without a network."""
    from gpt2tg.training.output.durable import write_text_file

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_file(path, json.dumps(asdict(files)))


def read_record(path: Path) -> DatasetFiles | None:
    """Return the files that an earlier run remembered; None if there are none, or the record cannot be used."""
    try:
        found = read_json(path)
        splits = {str(name): tuple(map(str, paths)) for name, paths in found["splits"].items()}
        return DatasetFiles(found["name"], found["config"], found["commit"], splits)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class RemoteFile(PurePosixPath):
    """A file of a dataset on the hub, read over the network: `datasets/NAME@COMMIT/PATH`."""

    def open(self, mode: str = "rb") -> Any:
        """Open the file for reading. What is read is kept nowhere.

        Raises:
            OSError, HfHubHTTPError and others: as `huggingface_hub` raises them.
        """
        from huggingface_hub import HfFileSystem

        return HfFileSystem().open(str(self), mode)

    def stat(self) -> Any:
        """Return an object with the size of the file, `st_size`."""
        from types import SimpleNamespace

        from huggingface_hub import HfFileSystem

        return SimpleNamespace(st_size=HfFileSystem().size(str(self)))
