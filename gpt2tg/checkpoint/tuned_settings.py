"""Settings that `--tune --apply` saved in a checkpoint. Generation uses them unless a flag says otherwise.

They are stored in generation_config.json under transformers' own names, so that transformers uses them too. Our own
entry in that file lists which settings we wrote: all others are ignored here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from gpt2tg.checkpoint.file_names import GENERATION_CONFIG
from gpt2tg.checkpoint.runs import MANIFEST
from gpt2tg.errors import UserError
from gpt2tg.io.json_files import read_json
from gpt2tg.io.outputs import write_whole
from gpt2tg.options import STRATEGIES, DecodingOptions, default_of, plain_type

# Decoding options by name.
Settings = dict[str, str | int | float | None]

# Our entry in generation_config.json.
ENTRY = "gpt2tg"

# The strategy that `--tune` searches with.
TUNED_STRATEGY = "top_p"

# Our names and those of transformers.
TRANSFORMERS_NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram": "no_repeat_ngram_size",
}

# How transformers writes that a filter is off; without an entry it would use a default of its own.
OFF = {"top_k": 0}


def read_tuned_settings(directory: Path) -> Settings:
    """Return the settings that `--tune --apply` saved in a checkpoint; empty if there are none.

    Raises:
        UserError: a setting is unknown or has a value that it cannot have; names file and setting.
    """
    path = directory / GENERATION_CONFIG
    if not path.is_file():
        return {}
    config = read_json(path)
    entry = config.get(ENTRY)
    if not isinstance(entry, dict):
        return {}
    found: Settings = {"decoding": entry.get("decoding", TUNED_STRATEGY)}
    if found["decoding"] not in STRATEGIES:
        raise _broken(path, f"decoding {found['decoding']} is unknown")
    for name in entry.get("settings", ()):
        if name not in TRANSFORMERS_NAMES:
            raise _broken(path, f"{name} is no tuned setting")
        value = config.get(TRANSFORMERS_NAMES[name])
        if value is None or value == OFF.get(name):
            continue
        kind = plain_type(DecodingOptions, name)
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise _broken(path, f"{TRANSFORMERS_NAMES[name]} is {value}, expected a number")
        found[name] = kind(value)
    try:
        DecodingOptions(**found)  # type: ignore[arg-type]  # each value has the type of its option
    except UserError as error:
        raise _broken(path, str(error)) from None
    return found


def _broken(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; correct it, or remove the entry {ENTRY} to generate without tuned settings")


def beside_chosen(tuned: Settings, options: DecodingOptions, chosen: Collection[str]) -> Settings:
    """Return the tuned settings that apply: those that were not chosen; none if another strategy was chosen.

    Args:
        options: what the user chose, and defaults.
        chosen: names of the options that the user chose.
    """
    if not tuned or ("decoding" in chosen and options.decoding != tuned["decoding"]):
        return {}
    return {name: value for name, value in tuned.items() if name not in chosen}


def with_settings(options: DecodingOptions, settings: Settings) -> DecodingOptions:
    """Return the options with some of them replaced."""
    return replace(options, **settings)  # type: ignore[arg-type]  # each value has the type of its option


def write_tuned_settings(directory: Path, options: DecodingOptions) -> Path:
    """Save tuned settings in a checkpoint. The other entries of its generation_config.json stay.

    Returns:
        The file.

    Raises:
        RunError: it cannot be written.
    """
    path = directory / GENERATION_CONFIG
    config = read_json(path) if path.is_file() else {}
    values = {name: getattr(options, name) for name in TRANSFORMERS_NAMES}
    config |= {TRANSFORMERS_NAMES[name]: OFF.get(name) if value is None else value for name, value in values.items()}
    config |= {"do_sample": True, ENTRY: {"decoding": options.decoding, "settings": list(TRANSFORMERS_NAMES)}}
    content = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_whole(path, content)
    _update_manifest(directory, content)
    return path


def _update_manifest(directory: Path, content: str) -> None:
    """Record the new generation_config.json in the manifest: a run resumes only from files that match it."""
    manifest = directory / MANIFEST
    if not manifest.is_file():
        return
    known = read_json(manifest)
    if GENERATION_CONFIG in known.get("files", {}):
        data = content.encode()
        known["files"][GENERATION_CONFIG] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        write_whole(manifest, json.dumps(known, indent=2) + "\n")


def tunable_settings(options: DecodingOptions) -> Settings:
    """Return the strategy and those of the options that a checkpoint can store."""
    return {"decoding": options.decoding, **{name: getattr(options, name) for name in TRANSFORMERS_NAMES}}


def as_flags(settings: Mapping[str, object]) -> str:
    """Return settings as flags, without those at their defaults."""
    return " ".join(f"--{name} {value}" for name, value in _changed(settings).items())


def as_strategy(settings: Mapping[str, object]) -> str:
    """Return settings as an entry of `--strategies`, without those at their defaults."""
    changed = {name: value for name, value in _changed(settings).items() if name != "decoding"}
    return ":".join([str(settings["decoding"]), *(f"{name}={value}" for name, value in changed.items())])


def _changed(settings: Mapping[str, object]) -> dict[str, str]:
    return {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in settings.items()
        if value is not None and value != default_of(DecodingOptions, name)
    }
