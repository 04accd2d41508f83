"""Read prompts: from a flag, stdin, or a file with one per line or row."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2tg.errors import UserError
from gpt2tg.generation.chat import Chat
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
from gpt2tg.reading.conversations import ASSISTANT, Message, read_messages
from gpt2tg.reading.table_row import TableError

# The keys of a line that hold a conversation.
MESSAGES = ("messages", "conversations")


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and the decoding settings that its line gives."""

    text: str
    settings: dict[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    """The conversation to continue with an answer; empty if the prompt is plain text. `with_template` gives its text"""


def with_template(prompts: Sequence[Prompt], chat: Chat) -> list[Prompt]:
    """Return the prompts with the text of their conversations.

    Raises:
        UserError: the model has no chat template, or it refuses the messages.
    """
    found = []
    for number, prompt in enumerate(prompts, start=1):
        if prompt.messages:
            _ = chat.template  # that there is none concerns all prompts
            try:
                text = chat.prompt(prompt.messages)
            except UserError as error:
                if len(prompts) == 1:
                    raise
                raise UserError(f"prompt {number}: {error}", "prompts_file") from None
            prompt = dataclasses.replace(prompt, text=text)
        found.append(prompt)
    return found


def read_prompts(options: PromptOptions, say: Callable[[str], None] = lambda _: None) -> list[Prompt]:
    """Return the prompts that the options name, in their order.

    Args:
        say: called with a line that names the column read from a table.

    Raises:
        UserError: the file cannot be read, has no prompt, or has an invalid line; names file and line.
    """
    prompts = _read_prompts(options, say)
    if options.chat:
        prompts = [prompt if prompt.messages else _question(prompt) for prompt in prompts]
    return prompts


def _question(prompt: Prompt) -> Prompt:
    return dataclasses.replace(prompt, messages=({"role": "user", "content": prompt.text},))


def _read_prompts(options: PromptOptions, say: Callable[[str], None]) -> list[Prompt]:
    if options.prompts_file is None:
        return [Prompt(read_stdin("prompt").removesuffix("\n") if options.prompt == "-" else options.prompt)]
    path = Path(options.prompts_file)
    check_text_column(options.text_column, path)
    if is_json_lines(path):
        name = options.text_column or "prompt"
        lines = enumerate(read_lines(path, "prompts_file"), start=1)
        prompts = [_from_json(line, path, number, name) for number, line in lines if line.strip()]
        if answers := sum(prompt.messages != _asked(prompt.messages) for prompt in prompts):
            say(f"{path}: {answers:,} conversations end with an answer, which is left out and generated")
        prompts = [dataclasses.replace(prompt, messages=_asked(prompt.messages)) for prompt in prompts]
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


def _asked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return a conversation without the answers at its end."""
    while messages and messages[-1]["role"] == ASSISTANT:
        messages = messages[:-1]
    return messages


def _from_json(line: str, path: Path, number: int, name: str) -> Prompt:
    where = f"{path} line {number}"
    entry = parse_json_line(line, where, "prompts_file", 'write {"prompt": "..."} or {"messages": [...]}')
    key = next((key for key in MESSAGES if key in entry and name not in entry), None)
    text = entry.pop(name if key is None else key, None)
    messages: tuple[Message, ...] = ()
    if key is not None:
        text, messages = "", _messages(text, key, path, number)
    if not isinstance(text, str):
        raise UserError(f'{where} has no string "{name}": write {{"{name}": "..."}}', "prompts_file")
    settings = {key: setting(key, value, where, "prompts_file") for key, value in entry.items()}
    return Prompt(text, settings, messages)


def _messages(value: Any, key: str, path: Path, number: int) -> tuple[Message, ...]:
    try:
        messages = read_messages(value, key, number)
        if not _asked(messages):
            raise TableError(f"line {number}: {key} has no question: end with a message of the role user")
    except TableError as error:
        raise UserError(error.with_path(path), "prompts_file") from None
    return messages


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
