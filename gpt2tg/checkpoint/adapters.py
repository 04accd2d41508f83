"""Find LoRA adapters as peft saves them, and check their settings. Nothing here needs torch or peft."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gpt2tg.checkpoint.file_names import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS, WEIGHT_FILES
from gpt2tg.checkpoint.tensor_names import EMBEDDING, HEAD, plain_adapter_name
from gpt2tg.checkpoint.weight_files import read_header
from gpt2tg.errors import UserError, one_line
from gpt2tg.io.json_files import read_json

# Fields of peft's LoraConfig that may have any value. They concern training, or their effect shows in the tensors:
# which layers the adapter changes, and the rank of each.
ANY_VALUE = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "inference_mode"),
    *("r", "rank_pattern", "lora_alpha", "use_rslora", "lora_dropout", "fan_in_fan_out", "bias", "modules_to_save"),
    *("alpha_pattern", "use_dora", "trainable_token_indices"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "eva_config"),
    *("megatron_core", "qalora_group_size"),  # peft writes values here even if it does not use them
}

# Initialisations that leave the model's own weights unchanged. Others, such as PiSSA, subtract the initial adapter.
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")

# Values of a setting that is switched off.
UNSET: tuple[object, ...] = (None, False, "", [], {})


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter but no weights of a whole model."""
    return (directory / ADAPTER_CONFIG).is_file() and not any((directory / name).is_file() for name in WEIGHT_FILES)


def base_name(directory: Path) -> str:
    """Return the model that an adapter was trained on: a hub name or a directory.

    Raises:
        UserError: adapter_config.json is broken, names no model, or has a setting that we do not support.
    """
    name = read_adapter_config(directory).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(
            f"{directory / ADAPTER_CONFIG} does not name the model that the adapter was trained on: "
            "enter it as base_model_name_or_path"
        )
    return name


def embedding_rows(directory: Path, rows: int) -> int:
    """Return the rows of the token embedding of a model with an adapter.

    They are more than those of the model alone if the adapter replaces the embedding by a larger one, or adds tokens.
    An embedding in a pickle does not count, since reading it needs torch.

    Args:
        rows: of the model alone.

    Raises:
        UserError: the adapter's weights are missing or broken.
    """
    file = adapter_file(directory)
    added = token_rows(read_adapter_config(directory), directory).get(EMBEDDING, ())
    rows = max(rows, max(added, default=0) + 1)
    if file.suffix == ".bin":
        return rows
    for name, entry in read_header(file).items():
        if plain_adapter_name(name, (EMBEDDING,)):
            stored = entry["shape"][0] if isinstance(entry.get("shape"), list) and entry["shape"] else None
            return stored if isinstance(stored, int) else rows
    return rows


def token_rows(config: dict[str, Any], directory: Path) -> dict[str, list[int]]:
    """Return the ids of the tokens whose rows an adapter replaces, by the plain name of the embedding or the head.

    Args:
        config: the content of adapter_config.json.
        directory: of the adapter, for messages.

    Raises:
        UserError: trainable_token_indices is neither a list of ids nor an object with such lists.
    """
    given = config.get("trainable_token_indices") or {}
    by_module = given if isinstance(given, dict) else {"wte": given}
    found = {}
    for module, ids in by_module.items():
        name = plain_adapter_name(f"{module}.weight", (EMBEDDING, HEAD))
        if name is None or not isinstance(ids, list) or not all(type(number) is int and number >= 0 for number in ids):
            raise UserError(
                f"{directory / ADAPTER_CONFIG}: trainable_token_indices is {one_line(given, 80)}, not a list of token "
                "ids: copy or download the adapter again"
            )
        found[name] = ids
    return found


def adapter_file(directory: Path) -> Path:
    """Return the file with an adapter's tensors.

    Raises:
        UserError: it is missing.
    """
    for name in (ADAPTER_WEIGHTS, ADAPTER_PICKLE):
        if (directory / name).is_file():
            return directory / name
    raise UserError(f"{directory / ADAPTER_WEIGHTS} is missing: the adapter is incomplete. Copy or download it again")


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """Return the settings in adapter_config.json.

    Raises:
        UserError: the file is broken, or has a setting that we do not support.
    """
    config = read_json(directory / ADAPTER_CONFIG)
    if not isinstance(config.get("lora_alpha", 1), (int, float)):
        raise UserError(
            f"{directory / ADAPTER_CONFIG}: lora_alpha is {one_line(config['lora_alpha'], 80)}, not a number"
        )
    _check_alphas(config, directory)
    _refuse_unsupported_settings(config, directory)
    return config


def _check_alphas(config: dict[str, Any], directory: Path) -> None:
    """Refuse values of alpha_pattern that are not patterns with numbers."""
    patterns = config.get("alpha_pattern") or {}
    try:
        if not all(isinstance(alpha, (int, float)) and re.compile(pattern) for pattern, alpha in patterns.items()):
            raise ValueError("an alpha is not a number")
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise UserError(
            f"{directory / ADAPTER_CONFIG}: alpha_pattern is {one_line(patterns, 80)} ({one_line(error)}): copy or "
            "download the adapter again"
        ) from None


def _refuse_unsupported_settings(config: dict[str, Any], directory: Path) -> None:
    """Refuse every setting that is not known to be harmless, since it might change what the adapter computes."""
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{directory} is an adapter of the type {config.get('peft_type')}: only LoRA is supported. "
            "Merge it into its model with peft if peft can, and give the directory of the merged model"
        )
    refused = {name: value for name, value in config.items() if name not in ANY_VALUE and value not in UNSET}
    if refused.get("revision") == "main":  # the revision that we read
        del refused["revision"]
    if (initialisation := config.get("init_lora_weights")) not in PLAIN_INITIALISATIONS:
        refused["init_lora_weights"] = initialisation
    for name, value in refused.items():
        raise UserError(
            f"{directory} is a LoRA adapter with {name} {one_line(value, 80)}, which is not supported: merge it into "
            "its model with peft (merge_and_unload), and give the directory of the merged model"
        )
