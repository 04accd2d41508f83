"""Find a model of the Hugging Face hub: in the local cache without the network, else by a download."""

from __future__ import annotations

import re
from pathlib import Path

from gpt2tg.checkpoint.adapters import is_adapter
from gpt2tg.checkpoint.file_names import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    CONFIG_FILES,
    TOKENIZER_FILES,
    WEIGHT_FILES,
    complete_vocabulary,
)
from gpt2tg.checkpoint.weight_files import find_weights
from gpt2tg.errors import UserError, one_line
from gpt2tg.options import BUNDLED_MODEL

# Seconds that the hub may take to answer before it counts as unreachable.
HUB_TIMEOUT = 5


def fetch_model(name: str, option: str = "model_name", revision: str | None = None) -> Path:
    """Return the local directory of a hub model. Download it if the cache has no complete copy.

    Args:
        option: the flag that the name came from, for messages.
        revision: a branch, a tag or a commit; None for the main branch.

    Raises:
        UserError: the name is invalid, the hub has no such model or revision or denies access, the hub cannot be
            reached, or the download fails.
    """
    try:
        return _find_cached(name, revision) or _download(name, revision)
    except Exception as error:  # errors of the HTTP library pass through huggingface_hub
        raise _explained(error, name, option, revision) from None


def is_cached(name: str, revision: str | None = None) -> bool:
    """Whether the cache has a complete copy of a hub model, so that it needs no network."""
    try:
        return _find_cached(name, revision) is not None
    except Exception:  # it is no name of a hub model
        return False


def _explained(error: Exception, name: str, option: str, revision: str | None) -> UserError:
    """Return the error that names the way out for an error of huggingface_hub."""
    from huggingface_hub import errors

    version = f" at revision {revision}" if revision else ""
    not_here = f"{name}{version} is neither a directory here nor a model in the local cache"
    ways_out = (
        f"use --{option} {BUNDLED_MODEL} (bundled, works offline), or give the path of a directory that holds the model"
    )
    log_in = "`hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.HFValidationError):
        message = f"{name[:100]} is neither a directory here nor a valid name of a hub model: check the spelling"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        message = f"{not_here}, and HF_HUB_OFFLINE is set: {ways_out}"
    elif isinstance(error, _HubUnreachable):
        message = f"{not_here}, and the model hub cannot be reached: {ways_out}"
    elif isinstance(error, errors.RevisionNotFoundError):
        option = "revision"
        message = f"{revision} is no branch, tag or commit of {name}: look at its list of commits on the hub"
    elif isinstance(error, errors.GatedRepoError):
        message = f"{name} is a gated model: accept its terms on the hub, then log in here with {log_in}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        message = (
            f"{name} is neither a directory here nor a model on the hub: check the spelling; a private model "
            f"needs {log_in}"
        )
    elif getattr(getattr(error, "response", None), "status_code", None) == 401:
        message = f"{name}: the hub does not accept the login: renew it with `hf auth login`, or unset HF_TOKEN"
    else:
        message = f"{name} could not be downloaded from the hub ({one_line(error)}): {ways_out}"
    return UserError(message, option)


def hub_commit(directory: Path) -> str | None:
    """Return the commit of a model in the hub's cache; None for other directories."""
    is_commit = directory.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", directory.name)
    return directory.name if is_commit else None


class _HubUnreachable(Exception):
    """The hub did not answer in time, or there is no network."""


def _find_cached(name: str, revision: str | None) -> Path | None:
    """Return the cached snapshot if it is complete.

    `snapshot_download(local_files_only=True)` would also find it, but importing it takes 0.1 s longer, and it returns
    incomplete snapshots that another program downloaded file by file.
    """
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", ADAPTER_CONFIG):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str) and _is_complete(Path(found).parent):
            return Path(found).parent
    return None


def _is_complete(snapshot: Path) -> bool:
    """Whether a snapshot has every file that we need, which may be fewer than the repository has."""
    names = {path.name for path in snapshot.iterdir() if path.is_file()}  # False for a link to a removed file
    if is_adapter(snapshot):
        return not names.isdisjoint((ADAPTER_WEIGHTS, ADAPTER_PICKLE))
    if names.isdisjoint(WEIGHT_FILES) or "config.json" not in names:
        return False
    try:
        find_weights(snapshot)
    except UserError:  # a shard is missing
        return False
    return bool(complete_vocabulary(names))


def _download(name: str, revision: str | None) -> Path:
    """Download the files that we need. Ask the hub for the list of files first, to choose one format of the weights.

    Raises:
        _HubUnreachable: there is no answer to the first request within `HUB_TIMEOUT` seconds.
        HFValidationError, OfflineModeIsEnabled, HfHubHTTPError and others: as `huggingface_hub` raises them.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:  # a single request: `snapshot_download` alone has no timeout here, and retries for most of a minute
        files = [
            file.rfilename for file in HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT).siblings or ()
        ]
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled):
        raise
    except Exception as error:  # the HTTP library is another one in other versions of huggingface_hub
        raise _HubUnreachable from error
    patterns = [*CONFIG_FILES, *TOKENIZER_FILES, *_weight_patterns(files)]
    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def _weight_patterns(files: list[str]) -> list[str]:
    """Return patterns for the weights to download: the most preferred format only, or those of an adapter.

    Args:
        files: all files of the repository.
    """
    preferred = next((name for name in WEIGHT_FILES if name in files), None)
    if preferred is None:
        adapter = next((name for name in (ADAPTER_WEIGHTS, ADAPTER_PICKLE) if name in files), None)
        return [ADAPTER_CONFIG, adapter] if adapter else ["pytorch_model.bin"]
    if not preferred.endswith(".json"):
        return [preferred]
    stem, suffix = preferred.removesuffix(".index.json").rsplit(".", 1)
    return [preferred, f"{stem}-*.{suffix}"]  # shards are named like model-00001-of-00002.safetensors
