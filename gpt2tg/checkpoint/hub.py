"""Find a model of the Hugging Face hub: in the local cache without the network, else by a download."""

from __future__ import annotations

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


def fetch_model(name: str, option: str = "model_name") -> Path:
    """Return the local directory of a hub model. Download it if the cache has no complete copy.

    Args:
        option: the flag that the name came from, for messages.

    Raises:
        UserError: the name is invalid, the hub has no such model or denies access, the hub cannot be reached, or the
            download fails.
    """
    from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    not_here = f"{name} is neither a directory here nor a model in the local cache"
    ways_out = (
        f"use --{option} {BUNDLED_MODEL} (bundled, works offline), or give the path of a directory that holds the model"
    )
    try:
        return _find_cached(name) or _download(name)
    except HFValidationError:
        message = f"{name[:100]} is neither a directory here nor a valid name of a hub model: check the spelling"
    except OfflineModeIsEnabled:
        message = f"{not_here}, and HF_HUB_OFFLINE is set: {ways_out}"
    except _HubUnreachable:
        message = f"{not_here}, and the model hub cannot be reached: {ways_out}"
    except GatedRepoError:
        message = f"{name} is a gated model: accept its terms on the hub, then log in here with `hf auth login`"
    except RepositoryNotFoundError:
        message = (
            f"{name} is neither a directory here nor a model on the hub: check the spelling; "
            "a private model needs `hf auth login`"
        )
    except Exception as error:  # errors of the HTTP library pass through huggingface_hub
        message = f"{name} could not be downloaded from the hub ({one_line(error)}): {ways_out}"
    raise UserError(message, option)


class _HubUnreachable(Exception):
    """The hub did not answer in time, or there is no network."""


def _find_cached(name: str) -> Path | None:
    """Return the cached snapshot if it is complete.

    `snapshot_download(local_files_only=True)` would also find it, but importing it takes 0.1 s longer, and it returns
    incomplete snapshots that another program downloaded file by file.
    """
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", ADAPTER_CONFIG):
        found = try_to_load_from_cache(name, file)
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


def _download(name: str) -> Path:
    """Download the files that we need. Ask the hub for the list of files first, to choose one format of the weights.

    Raises:
        _HubUnreachable: there is no answer to the first request within `HUB_TIMEOUT` seconds.
        HFValidationError, OfflineModeIsEnabled, HfHubHTTPError and others: as `huggingface_hub` raises them.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:  # a single request: `snapshot_download` alone has no timeout here, and retries for most of a minute
        files = [file.rfilename for file in HfApi().model_info(name, timeout=HUB_TIMEOUT).siblings or ()]
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled):
        raise
    except Exception as error:  # the HTTP library is another one in other versions of huggingface_hub
        raise _HubUnreachable from error
    return Path(snapshot_download(name, allow_patterns=[*CONFIG_FILES, *TOKENIZER_FILES, *_weight_patterns(files)]))


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
