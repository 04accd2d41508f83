"""Datasets of the Hugging Face hub: which commit a name stands for, its files, and their download."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from gpt2tg.checkpoint.hub import HUB_TIMEOUT
from gpt2tg.errors import UserError, one_line
from gpt2tg.training.console import log
from gpt2tg.training.data.dataset_files import DatasetFiles, RemoteFile, read_record, resolve_splits, write_record
from gpt2tg.training.data.quiet_datasets import quiet_hub

# Which files a name stood for, so that a run needs no network if its files are in the hub's cache.
RECORDS = Path(HF_HOME) / "gpt2tg" / "datasets"

COMMIT = re.compile(r"[0-9a-f]{40}")

WAYS_OUT = "give a local folder, or text files with --train_file"


def find_on_hub(name: str, config: str | None, revision: str | None) -> DatasetFiles:
    """Return the files of a dataset on the hub, at the commit that the revision stands for now.

    Without a network, the commit that was used last is used again.

    Raises:
        UserError: there is no such dataset or revision, access is denied, or the hub cannot be reached.
    """
    record = RECORDS / f"{hashlib.sha256(repr((name, config, revision)).encode()).hexdigest()[:32]}.json"
    known = read_record(record)
    if known is not None and revision is not None and COMMIT.fullmatch(revision):
        return known
    not_here = f"{name} is neither a folder here nor a dataset that was used before"
    try:
        found = _ask_hub(name, config, revision)
    except (OfflineModeIsEnabled, _HubUnreachable) as error:
        is_offline = isinstance(error, OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if is_offline else "the hub cannot be reached"
        if known is None:
            raise UserError(f"{not_here}, and {why}: {WAYS_OUT}", "dataset_name") from None
        log.info(f"{why}: using commit {known.commit} of {name}, as before")
        return known
    except HFValidationError:
        message = f"{name[:100]} is neither a folder here nor a valid name of a hub dataset: check the spelling"
    except GatedRepoError:
        message = f"{name} is a gated dataset: accept its terms on the hub, then log in here with `hf auth login`"
    except RevisionNotFoundError:
        raise UserError(
            f"{revision} is no branch, tag or commit of {name}: check it on the hub", "dataset_revision"
        ) from None
    except RepositoryNotFoundError:
        message = (
            f"{name} is neither a folder here nor a dataset on the hub: check the spelling; "
            "a private dataset needs `hf auth login`"
        )
    except UserError:
        raise
    except Exception as error:  # errors of the HTTP library pass through huggingface_hub and datasets
        message = f"{name} could not be read from the hub ({one_line(error)}): try again, or {WAYS_OUT}"
    else:
        with contextlib.suppress(OSError):  # a read-only cache: the next run asks again
            write_record(record, found)
        return found
    raise UserError(message, "dataset_name")


class _HubUnreachable(Exception):
    """The hub did not answer in time, or there is no network."""


def _ask_hub(name: str, config: str | None, revision: str | None) -> DatasetFiles:
    try:  # a single request with a time limit, before those of datasets, which has none
        commit = HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT).sha
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled):
        raise
    except Exception as error:  # the HTTP library is another one in other versions of huggingface_hub
        raise _HubUnreachable from error
    assert commit is not None
    root = f"hf://datasets/{name}@{commit}/"
    splits = resolve_splits(f"hf://datasets/{name}", name, config, revision=commit)
    inside = {split: tuple(path.removeprefix(root) for path in paths) for split, paths in splits.items()}
    return DatasetFiles(name, config, commit, inside)


def download(files: DatasetFiles, split: str) -> tuple[Path, ...]:
    """Return the local paths of the files of a split, downloaded into the hub's cache unless they are there.

    Raises:
        UserError: the hub cannot be reached, or the download fails.
    """
    paths = files.splits[split]
    cached = [try_to_load_from_cache(files.name, path, revision=files.commit, repo_type="dataset") for path in paths]
    if all(isinstance(path, str) for path in cached):
        return tuple(Path(str(path)) for path in cached)
    log.info(f"downloading {len(paths):,} file{'' if len(paths) == 1 else 's'} of {files.name}")
    patterns = [glob.escape(path) for path in paths]
    try:
        with quiet_hub():
            folder = snapshot_download(files.name, repo_type="dataset", revision=files.commit, allow_patterns=patterns)
    except Exception as error:
        raise UserError(
            f"{files.name} could not be downloaded from the hub ({one_line(error)}): try again, or {WAYS_OUT}",
            "dataset_name",
        ) from None
    return tuple(Path(folder) / path for path in paths)


def remote_files(files: DatasetFiles, split: str) -> tuple[RemoteFile, ...]:
    """Return the files of a split, to be read over the network."""
    return tuple(RemoteFile(f"datasets/{files.name}@{files.commit}/{path}") for path in files.splits[split])
