"""Conversations in the rows of tables: lists of messages, and instructions with their outputs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from gpt2tg.reading.columns import Columns, are_messages
from gpt2tg.reading.strict_json import refuse_lone_surrogates
from gpt2tg.reading.table_row import TableError, TableRow, blank_row

# A message has the keys `role` and `content`, as chat templates expect it.
Message = dict[str, str]

# The keys of a message: role, then content. The second pair is that of ShareGPT.
KEYS = (("role", "content"), ("from", "value"))

# ShareGPT's names of roles, and those of chat templates.
ROLES = {"human": "user", "gpt": "assistant"}

ASSISTANT = "assistant"

# How a list of messages begins that was saved as a string, as JSON or as Python writes it.
QUOTED_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']""")

HOW_TO_WRITE = 'write messages like {"role": "user", "content": "..."}'


class Conversations(Protocol):
    """How conversations become text."""

    def template_name(self) -> str:
        """Return the name of the chat template, for a notice."""

    def pieces(self, messages: Sequence[Message]) -> Sequence[tuple[str, bool]]:
        """Return the text of a conversation in pieces, each with whether it carries loss.

        Raises:
            ValueError: the template refuses the messages. The message starts with a verb.
        """


def read_messages(messages: Any, column: str, line: int) -> tuple[Message, ...]:
    """Return a list of messages, each with its role and its text.

    Raises:
        TableError: it is not a list of messages, or one of them lacks a role or a text.
    """
    if not isinstance(messages, list):
        found = as_json(messages)[:40]
        raise TableError(f"line {line}: {column} is {found}, expected a list of messages: {HOW_TO_WRITE}")
    return tuple(_message(message, f"line {line}: message {n} of {column}") for n, message in enumerate(messages, 1))


def refuse_quoted_messages(text: str, columns: Columns, line: int) -> None:
    """Refuse a conversation that was saved as a string: it would be learned as plain text, with all its brackets.

    Raises:
        TableError: names the line and the column.
    """
    if are_messages(columns) and QUOTED_MESSAGES.match(text):
        raise TableError(
            f"line {line}: {columns[0]} is a conversation in quotes: write the list itself into a .jsonl, "
            'like {"messages": [{"role": "user", "content": "..."}]}'
        )


def as_json(value: Any) -> str:
    """Return a value of a table for a message."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _message(message: Any, where: str) -> Message:
    keys = next((keys for keys in KEYS if isinstance(message, dict) and keys[0] in message), None)
    if keys is None:
        raise TableError(f"{where} has no role: {HOW_TO_WRITE}")
    role, content = message[keys[0]], _text(message.get(keys[1]))
    if not isinstance(role, str) or not role.strip():
        raise TableError(f"{where} has the role {as_json(role)[:40]}, expected a name such as user or assistant")
    if content is None:
        raise TableError(f"{where}, of the role {role[:40]}, has no text as its {keys[1]}: {HOW_TO_WRITE}")
    try:
        refuse_lone_surrogates([role, content])
    except ValueError as error:
        raise TableError(f"{where} {error}") from None
    return {"role": ROLES.get(role, role), "content": content.replace("\r\n", "\n")}


def _text(content: Any) -> str | None:
    """Return the text of a message: a string, or a list of parts that all are texts; None for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    is_text = len(texts) == len(content) > 0 and all(isinstance(text, str) for text in texts)
    return "".join(map(str, texts)) if is_text else None


def conversation_row(line: int, messages: tuple[Message, ...]) -> TableRow:
    """Return the row of a conversation up to its last answer; an empty row without answers, or with a blank one."""
    answers = [number for number, message in enumerate(messages) if message["role"] == ASSISTANT]
    if not answers or not all(messages[number]["content"].strip() for number in answers):
        return blank_row(line)
    return TableRow(line, "", messages[answers[-1]]["content"], messages[: answers[-1] + 1])


def instruction_row(line: int, values: Sequence[str]) -> TableRow:
    """Return the row of an instruction and its output, as a question and its answer.

    Args:
        values: the instruction; its input, if there is such a column; the output.
    """
    instruction, *further, output = (value.replace("\r\n", "\n") for value in values)
    question = "\n\n".join(part for part in (instruction, *further) if part.strip())
    messages = ({"role": "user", "content": question}, {"role": ASSISTANT, "content": output})
    return conversation_row(line, messages)
