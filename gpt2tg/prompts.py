"""Where prompts come from: a flag, stdin, or a file with one a line."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2tg.errors import UserError
from gpt2tg.options import DecodingOptions, PromptOptions, plain_type
from gpt2tg.words import is_utf8


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and what its line says of the way."""

    text: str
    settings: dict[str, Any] = field(default_factory=dict)


def read_prompts(options: PromptOptions) -> list[Prompt]:
    """The prompts that the options name, in their order.

    Raises:
        UserError: the file cannot be read, holds no prompt, or has a line that is none; names file and line.
    """
    if options.prompts_file is None:
        return [Prompt(sys.stdin.read().removesuffix("\n") if options.prompt == "-" else options.prompt)]
    path = Path(options.prompts_file)
    lines = read_lines(path, "prompts_file")
    if path.suffix == ".jsonl":
        prompts = [_from_json(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    else:
        prompts = [Prompt(line) for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt: write one a line", "prompts_file")
    return prompts


def read_lines(path: Path, option: str | None) -> list[str]:
    """The lines of a text file.

    Args:
        option: the flag that the path came from, for messages; None where it came from no flag.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte {error.start} is no part of a character", option) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", option) from None


def _from_json(line: str, path: Path, number: int) -> Prompt:
    where = f"{path} line {number}"
    try:
        entry = json.loads(line)
    except ValueError:
        raise UserError(f'{where} is no JSON: write {{"prompt": "..."}}', "prompts_file") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise UserError(f'{where} has no "prompt" that is a text', "prompts_file")
    settings = {name: setting(name, value, where, "prompts_file") for name, value in entry.items() if name != "prompt"}
    return Prompt(entry["prompt"], settings)


def setting(name: str, value: Any, where: str, option: str | None) -> Any:
    """A value of JSON as the option `name` has it.

    Args:
        where: file and line, for messages.
        option: the flag that the file came from, if any.

    Raises:
        UserError: no such option, or a value of another type.
    """
    if name not in {f.name for f in dataclasses.fields(DecodingOptions)}:
        raise UserError(f"{where}: {name} is no setting; those of --help are, such as temperature", option)
    kind = plain_type(DecodingOptions, name)
    if kind is tuple and isinstance(value, (str, list)):
        value = (value,) if isinstance(value, str) else tuple(value)
        if all(isinstance(part, str) and is_utf8(part) for part in value):
            return value
        if all(isinstance(part, str) for part in value):
            raise UserError(f"{where}: {name} is {json.dumps(value)}, which holds half a character", option)
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif type(value) is kind:
        return value
    expected = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", tuple: "texts"}[kind]
    raise UserError(f"{where}: {name} is {json.dumps(value)}, expected {expected}", option)
