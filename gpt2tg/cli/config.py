"""Recipe files: the flags of a command as YAML (`--config run.yaml`), and the `run.json` of an earlier run.

A key is a flag without its dashes. A flag on the command line wins over the file. Relative paths are relative to the
working directory, as on the command line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from gpt2tg.cli.flags import Flag, flag
from gpt2tg.errors import UserError, did_you_mean, one_line
from gpt2tg.io.atomic import replacing
from gpt2tg.options.fields import check_value, type_of

# Flags that belong to one command, not to a recipe. What an earlier run resumed or deleted is not repeated.
NOT_SAVED = ("resume", "resume_anyway", "overwrite", "dry_run")

# Flags that exclude each other: one on the command line replaces the other in a recipe.
ALTERNATIVES = (
    ("train_file", "dataset_name"), ("fp16", "bf16"), ("cross_examples", "no_cross_examples"),
    ("max_length", "max_new_tokens"), ("resume", "overwrite"),
)  # fmt: skip

# Fields of TrainingArguments that hold a secret end like this.
SECRET_SUFFIX = "_token"

HEADER = "# A recipe of gpt2tg: {prog} --config {name}\n"


def read_config(path: Path, flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Return the options that a file sets to something other than their defaults, by option name.

    Args:
        flags: the flags of the script, by name with dashes.

    Raises:
        UserError: the file cannot be read or is no recipe, or a key or its value is wrong; names file and key.
    """
    try:
        content = _settings_in(_load(path))
        found = [_option(str(key), value, flags) for key, value in content.items()]
    except UserError as error:
        key = f"{error.option}: " if error.option else ""
        raise UserError(f"{path}: {key}{error.message}", "config") from None
    names = [name for name, _ in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: {twice}: is there twice: leave one out", "config")
    return {name: value for name, value in found if not _is_default(flags[flag(name)], value)}


def merged(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a recipe and of a command line, which wins, also over what it excludes."""
    pairs = (*ALTERNATIVES, *((second, first) for first, second in ALTERNATIVES))
    replaced = {other for one, other in pairs if given.get(one) not in (None, False)}
    return {**{name: value for name, value in recipe.items() if name not in replaced}, **given}


def _load(path: Path) -> dict[Any, Any]:
    """Return the mapping in a file: JSON if it is named so, else YAML.

    Raises:
        UserError: it is something else.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError("does not exist: give the path of a recipe") from None
    except IsADirectoryError:
        raise UserError("is a directory: give a recipe, such as the run.json in it") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    try:
        content = _from_json(text) if path.suffix.lower() == ".json" else _from_yaml(text)
    except RecursionError:
        raise UserError("is nested too deeply: give a key and a value in each line") from None
    if not isinstance(content, dict) or not content:
        raise UserError("holds no settings: write a flag and its value in each line, like learning_rate: 1e-4")
    return content


def _from_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise UserError(f"is no valid JSON: line {error.lineno}: {error.msg}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError("is there twice: leave one out", twice)
    return found


def _from_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no annotations
        """The safe loader, without keys that are there twice."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := next((key for key in keys if keys.count(key) > 1), None):
                raise UserError("is there twice: leave one out", str(twice))
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    try:
        return yaml.load(text, Loader)
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise UserError(f"is no valid YAML: {line}{one_line(error.problem or error.context or error)}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise UserError(f"is no valid YAML: {one_line(error)}") from None


def _settings_in(content: dict[Any, Any]) -> dict[Any, Any]:
    """Return the settings in a file: all of it, or those of the run that wrote a run.json.

    Raises:
        UserError: it is a file of accelerate, or a record of ours without settings.
    """
    if "distributed_type" in content or "compute_environment" in content:
        raise UserError("is a config of accelerate: accelerate launch --config_file takes it")
    if isinstance(content.get("options"), dict):
        model = {name: content[name] for name in ("model_name", "revision") if content.get(name) is not None}
        return model | {name: value for name, value in content["options"].items() if name not in NOT_SAVED}
    if "tries" in content and "versions" in content:
        raise UserError("is the record of a search: give the run.json of one of its tries")
    return content


def _option(key: str, value: Any, flags: Mapping[str, Flag]) -> tuple[str, Any]:
    """Return the name of an option and its value, from a key and a value of a file.

    Raises:
        UserError: there is no such flag, or the value is none of its values; names the key.
    """
    name = key.replace("-", "_").rstrip("_")
    if name in ("config", "save_config"):
        raise UserError("a recipe names no other recipe: leave it out", key)
    known = flags.get(f"--{name}")
    if known is None:
        names = [flag.removeprefix("--") for flag in flags]
        raise UserError(f"is no flag of this script: {did_you_mean(name, names, '--help-all lists all flags')}", key)
    try:
        checked = check_value(known.options, known.field, _plain(known, value))
    except UserError as error:
        raise UserError(error.message, key) from None
    return known.field.name, checked


def _plain(flag: Flag, value: Any) -> Any:
    """Return a value of a file as the option takes it.

    Raises:
        UserError: it is a list where one value is expected, or another kind of value than the flag's.
    """
    if value is None:
        if type_of(flag.options, flag.field.name)[1]:
            return None
        raise UserError("is empty: give a value, or leave the key out")
    if flag.takes == "several":
        return _several(flag, value)
    if isinstance(value, (list, dict, tuple, set)):
        raise UserError("is a list or a mapping: give one value")
    if flag.takes == "optional" and isinstance(value, bool):  # YAML reads on and off as True and False
        off = "off" if "off" in (flag.field.metadata["choices"] or ()) else flag.field.default
        return flag.field.metadata["flag_value"] if value else off
    if flag.kind in (int, float) and isinstance(value, str):  # YAML reads 1e-4 as a text
        return flag.read([value])
    if flag.kind is str and not isinstance(value, str):
        if isinstance(value, bool) and flag.field.metadata["choices"]:
            return "true" if value else "false"
        raise UserError(f"{_shown(value)} is no text: put quotes around it")
    if flag.kind is bool and not isinstance(value, bool):
        quotes = " in quotes" if isinstance(value, str) else ""
        raise UserError(f"{_shown(value)}{quotes} is not valid: give true or false")
    return value


def _several(flag: Flag, value: Any) -> tuple[str, ...]:
    """Return the strings of a flag with several values: from one, from a list, or from a mapping for NAME=X."""
    takes_names = str(flag.field.metadata["metavar"]).startswith("NAME=")
    if isinstance(value, dict) and takes_names:
        return tuple(f"{name}={_joined(part)}" for name, part in value.items())
    if isinstance(value, (dict, set)):
        raise UserError("is a mapping: give a text, or a list of texts")
    parts = value if isinstance(value, (list, tuple)) else [value]
    for part in parts:
        if not isinstance(part, str):
            raise UserError(f"{_shown(part)} is no text: put quotes around numbers and words like yes")
    return tuple(parts)


def _joined(value: Any) -> str:
    """Return the value of NAME=X: a list with commas."""
    if isinstance(value, list):
        return ",".join(map(_joined, value))
    if isinstance(value, (dict, set)) or value is None:
        raise UserError("holds a value that is neither a number nor a text")
    return str(value)


def _shown(value: Any) -> str:
    return (
        value.isoformat() if isinstance(value, date) else str(value).lower() if value in (True, False) else str(value)
    )


def _is_default(flag: Flag, value: Any) -> bool:
    """Whether a value is the default in every task, so that naming it changes nothing."""
    is_bool = isinstance(value, bool)
    return all(value == meaning.default and isinstance(meaning.default, bool) is is_bool for meaning in flag.meanings)


def is_saved(path: Path, recipe: str) -> bool:
    """Return whether this recipe is there already, as when the same command resumes. Otherwise it can be saved.

    Raises:
        UserError: another file has the name, or there is no such directory.
    """
    if path.is_file() and path.read_bytes() == recipe.encode():
        return True
    if path.exists():
        raise UserError(f"{path} exists: choose another name, or delete it", "save_config")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no directory: create it first", "save_config")
    return False


def recipe_of(given: Mapping[str, Any], prog: str, name: str) -> str:
    """Return the options of a command as a recipe, without secrets and what belongs to this command alone.

    Args:
        name: of the file.
    """
    import yaml

    saved = {name.rstrip("_"): _as_yaml(value) for name, value in given.items() if name not in NOT_SAVED}
    text = yaml.safe_dump(saved, sort_keys=False, allow_unicode=True, width=120) if saved else ""
    return HEADER.format(prog=prog, name=name) + text


def write_config(path: Path, recipe: str) -> None:
    """Write a recipe.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with replacing(path) as draft:
            draft.write_bytes(recipe.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", "save_config") from None


def _as_yaml(value: Any) -> Any:
    if isinstance(value, tuple):
        return [part for part in value if not part.partition("=")[0].endswith(SECRET_SUFFIX)]
    return value
