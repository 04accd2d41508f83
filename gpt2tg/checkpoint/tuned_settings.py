"""Settings that a checkpoint brings along: found by `--tune --apply`, used where no flag says otherwise.

They stand in generation_config.json under the names of transformers, which reads them too. An entry of our own says
which of them we wrote: settings that came there in any other way change nothing here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2tg.checkpoint.find import find_checkpoint
from gpt2tg.checkpoint.runs import MANIFEST
from gpt2tg.errors import UserError
from gpt2tg.io.json_files import read_json
from gpt2tg.io.outputs import write_whole
from gpt2tg.options import STRATEGIES, DecodingOptions, default_of, plain_type

FILE = "generation_config.json"

# The entry that says which settings are ours.
OURS = "gpt2tg"

# The strategy that was searched with.
DECODING = "top_p"

# Our names and those of transformers.
NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram": "no_repeat_ngram_size",
}

# How transformers writes that a filter is off; left out, it would take a default of its own.
OFF = {"top_k": 0}


def read_defaults(directory: Path) -> dict[str, Any]:
    """The settings that `--apply` left in a checkpoint; empty where there are none.

    Raises:
        UserError: they are there, but broken.
    """
    path = directory / FILE
    if not path.is_file():
        return {}
    config = read_json(path)
    ours = config.get(OURS)
    if not isinstance(ours, dict):
        return {}
    found: dict[str, Any] = {"decoding": ours.get("decoding", DECODING)}
    if found["decoding"] not in STRATEGIES:
        raise UserError(f"{path}: {found['decoding']} is no strategy; remove the entry {OURS} to go without")
    for name in ours.get("settings", ()):
        if name not in NAMES:
            raise UserError(f"{path}: {name} is no setting that can be kept there; remove the entry {OURS}")
        value = config.get(NAMES[name])
        if value is None or value == OFF.get(name):
            continue
        kind = plain_type(DecodingOptions, name)
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise UserError(f"{path}: {NAMES[name]} is {value}, expected a number; remove the entry {OURS}")
        found[name] = kind(value)
    try:
        DecodingOptions(**found)
    except UserError as error:
        raise UserError(f"{path}: {error}; remove the entry {OURS}") from None
    return found


def brought_along(name: str, option: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the checkpoint of a model brings along, without what was given.

    Args:
        name: of the model; one that is no directory brings nothing.
        option: the flag that the name comes from, for messages.
        given: settings that go before them; with another strategy among them there are none.

    Raises:
        UserError: there is no checkpoint, or its settings are broken.
    """
    if not Path(name).expanduser().is_dir():
        return {}
    found = read_defaults(find_checkpoint(name, option))
    if not found or given.get("decoding", found["decoding"]) != found["decoding"]:
        return {}
    return {setting: value for setting, value in found.items() if setting not in given}


def write_defaults(directory: Path, options: DecodingOptions) -> Path:
    """Make settings those of a checkpoint. What else stands in its generation_config.json is kept.

    Returns:
        The file.

    Raises:
        RunError: it cannot be written.
    """
    path = directory / FILE
    config = read_json(path) if path.is_file() else {}
    values = {name: getattr(options, name) for name in NAMES}
    config |= {NAMES[name]: OFF.get(name) if value is None else value for name, value in values.items()}
    config |= {"do_sample": True, OURS: {"decoding": options.decoding, "settings": list(NAMES)}}
    content = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_whole(path, content)
    _tell_manifest(directory, content)
    return path


def _tell_manifest(directory: Path, content: str) -> None:
    """Training goes on only from a checkpoint whose files are those of its manifest: it has to know of the new one."""
    manifest = directory / MANIFEST
    if not manifest.is_file():
        return
    known = read_json(manifest)
    if FILE in known.get("files", {}):
        data = content.encode()
        known["files"][FILE] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        write_whole(manifest, json.dumps(known, indent=2) + "\n")


def in_words(settings: dict[str, Any]) -> str:
    """Settings as flags have them, those at their default left out."""
    return " ".join(f"--{name} {value}" for name, value in _changed(settings).items())


def as_strategy(settings: dict[str, Any]) -> str:
    """The strategy of the settings with them, as `--strategies` has it."""
    changed = {name: value for name, value in _changed(settings).items() if name != "decoding"}
    return ":".join([settings["decoding"], *(f"{name}={value}" for name, value in changed.items())])


def _changed(settings: dict[str, Any]) -> dict[str, str]:
    return {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in settings.items()
        if value is not None and value != default_of(DecodingOptions, name)
    }


def kept(options: DecodingOptions) -> dict[str, Any]:
    """Of the options, those that a checkpoint can keep."""
    return {"decoding": options.decoding, **{name: getattr(options, name) for name in NAMES}}
