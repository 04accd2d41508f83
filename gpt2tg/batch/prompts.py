"""Read prompts: from a flag, stdin, or a file with one per line or row."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2tg.errors import UserError
from gpt2tg.options import DecodingOptions, PromptOptions, plain_type
from gpt2tg.reading import (
    PROMPT_COLUMNS,
    check_text_column,
    is_json_lines,
    is_table,
    parse_json_line,
    read_lines,
    read_stdin,
    read_table,
)


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and the decoding settings that its line gives."""

    text: str
    settings: dict[str, Any] = field(default_factory=dict)


def read_prompts(options: PromptOptions, say: Callable[[str], None] = lambda _: None) -> list[Prompt]:
    """Return the prompts that the options name, in their order.

    Args:
        say: called with a line that names the column read from a table.

    Raises:
        UserError: the file cannot be read, has no prompt, or has an invalid line; names file and line.
    """
    if options.prompts_file is None:
        return [Prompt(read_stdin("prompt").removesuffix("\n") if options.prompt == "-" else options.prompt)]
    path = Path(options.prompts_file)
    check_text_column(options.text_column, path)
    if is_json_lines(path):
        name = options.text_column or "prompt"
        lines = enumerate(read_lines(path, "prompts_file"), start=1)
        prompts = [_from_json(line, f"{path} line {number}", name) for number, line in lines if line.strip()]
    elif is_table(path):
        rows = read_table(path, "prompts_file", options.text_column, say, PROMPT_COLUMNS)
        prompts = [Prompt(row.text) for row in rows]
    else:
        prompts = [Prompt(line) for line in read_lines(path, "prompts_file", say) if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt: write one per line", "prompts_file")
    return prompts


def trailing_spaces(prompts: Sequence[str]) -> str | None:
    """Return one warning for all prompts that end in a space; None if none does."""
    ending = [number for number, prompt in enumerate(prompts, start=1) if prompt.endswith(" ")]
    if not ending:
        return None
    which = "the prompt ends" if len(prompts) == 1 else f"prompt {ending[0]} ends"
    if len(ending) > 1:
        which = f"{len(ending)} prompts end (the first is number {ending[0]})"
    return (
        f"{which} in a space: in the model's tokens a space belongs to the word that follows it, and after a lone one "
        "the next word is often wrong. Leave the space out: the completion begins with its own"
    )


def _from_json(line: str, where: str, name: str) -> Prompt:
    entry = parse_json_line(line, where, "prompts_file", 'write {"prompt": "..."}')
    text = entry.pop(name, None)
    if not isinstance(text, str):
        raise UserError(f'{where} has no string "{name}": write {{"{name}": "..."}}', "prompts_file")
    return Prompt(text, {key: setting(key, value, where, "prompts_file") for key, value in entry.items()})


def setting(name: str, value: Any, where: str, option: str | None) -> Any:
    """Return a JSON value as a value of the decoding option `name`.

    Args:
        where: file and line, for messages.
        option: the flag that names the file, if any.

    Raises:
        UserError: the option does not exist, or the value has another type.
    """
    if name not in {f.name for f in dataclasses.fields(DecodingOptions)}:
        raise UserError(f"{where}: {name} is not a decoding setting: use those of --help, such as temperature", option)
    kind = plain_type(DecodingOptions, name)
    if kind is tuple and isinstance(value, (str, list)):
        value = (value,) if isinstance(value, str) else tuple(value)
        if all(isinstance(part, str) for part in value):
            return value
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif type(value) is kind:
        return value
    expected = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", tuple: "texts"}[kind]
    raise UserError(f"{where}: {name} is {json.dumps(value)}, expected {expected}", option)
