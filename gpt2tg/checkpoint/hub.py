"""Models by hub name: from the local cache where they are, from the network where they are not."""

from __future__ import annotations

from pathlib import Path

from gpt2tg.errors import UserError, one_line
from gpt2tg.io.json_files import read_object
from gpt2tg.options import BUNDLED_MODEL

# How long the hub may take to answer before it counts as out of reach.
PATIENCE_SECONDS = 5

# In the order of preference.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
# What may hold a vocabulary, in the order of preference; the others are not read beside it.
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
VOCABULARY_FILES = tuple(name for names in VOCABULARIES for name in names)
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json"),
)
GENERATION_CONFIG = "generation_config.json"
CONFIG_FILES = ("config.json", GENERATION_CONFIG)


def fetch_model(name: str, option: str = "model_name") -> Path:
    """The local directory of a hub model. A complete copy in the cache is used without asking the network.

    Args:
        option: the flag that the name came from, for messages.

    Raises:
        UserError: the model does not exist, or is not in the cache and the hub cannot be reached.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        return _cached(name) or _download(name, option)
    except HFValidationError:
        raise UserError(f"{name[:100]} is no directory here and no name that the hub allows", option) from None


def _cached(name: str) -> Path | None:
    """The cached copy, if it has all that we need of it; the library counts files that nobody here reads."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", ADAPTER_CONFIG):
        found = try_to_load_from_cache(name, file)
        if isinstance(found, str) and _is_complete(Path(found).parent):
            return Path(found).parent
    return None


def _is_complete(directory: Path) -> bool:
    there = {path.name for path in directory.iterdir() if path.is_file()} if directory.is_dir() else set()
    if ADAPTER_CONFIG in there and not there & set(WEIGHT_FILES):
        return bool(there & {ADAPTER_WEIGHTS, ADAPTER_PICKLE})
    return "config.json" in there and bool(vocabulary_among(there)) and _weights_are_there(directory, there)


def vocabulary_among(files: set[str]) -> tuple[str, ...]:
    """The files that the vocabulary of a tokenizer is read from; none if it is not there as a whole."""
    return next((names for names in VOCABULARIES if files.issuperset(names)), ())


def _weights_are_there(directory: Path, there: set[str]) -> bool:
    preferred = next((name for name in WEIGHT_FILES if name in there), None)
    if preferred is None or not preferred.endswith(".json"):
        return preferred is not None
    try:
        return set(read_object(directory / preferred)["weight_map"].values()) <= there
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _download(name: str, option: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    _refuse_when_out_of_reach(name, option)
    try:
        files = HfApi().list_repo_files(name)
        return Path(snapshot_download(name, allow_patterns=[*CONFIG_FILES, *TOKENIZER_FILES, *_weights_of(files)]))
    except HFValidationError:
        raise
    except GatedRepoError:
        raise UserError(f"{name} wants its terms accepted on the hub, and `hf auth login` here", option) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{name} is neither a directory here nor a model on the hub; a private one needs `hf auth login`",
            option,
        ) from None
    except Exception as error:  # the library lets those of its network library through
        raise UserError(f"{name} could not be had from the hub: {one_line(error)}; {_advice(option)}", option) from None


def _weights_of(files: list[str]) -> list[str]:
    """The weights worth downloading: one format, in the order of preference, or else those of an adapter."""
    preferred = next((name for name in WEIGHT_FILES if name in files), None)
    if preferred is None:
        adapter = next((name for name in (ADAPTER_WEIGHTS, ADAPTER_PICKLE) if name in files), None)
        return [ADAPTER_CONFIG, adapter] if adapter else ["pytorch_model.bin"]
    if not preferred.endswith(".json"):
        return [preferred]
    whole = preferred.removesuffix(".index.json")  # its shards are named as model-00001-of-00002.safetensors
    return [preferred, "-*.".join(whole.rsplit(".", 1))]


def _refuse_when_out_of_reach(name: str, option: str) -> None:
    """Ask the hub one short question. Its library would retry for most of a minute before giving up."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    missing = f"{name} is no directory here and not in the local cache"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{missing}, and HF_HUB_OFFLINE is set: {_advice(option)}", option)
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE_SECONDS)
    except Exception:  # whichever way the network fails, what the user can do is the same
        raise UserError(f"{missing}, and the model hub cannot be reached: {_advice(option)}", option) from None


def _advice(option: str) -> str:
    return (
        f"use --{option} {BUNDLED_MODEL} (bundled, works offline), or give the path of a directory that holds the model"
    )
