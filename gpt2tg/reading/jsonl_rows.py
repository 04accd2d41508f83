"""Read the rows of JSON Lines files: one JSON object per line."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, TextIO

from gpt2tg.reading.columns import ColumnChoice, Columns, are_instructions, join_names, reading_notice
from gpt2tg.reading.conversations import (
    ASSISTANT,
    Conversations,
    conversation_row,
    instruction_row,
    read_messages,
    refuse_quoted_messages,
)
from gpt2tg.reading.parsed_rows import ParsedRows
from gpt2tg.reading.strict_json import parse_json, refuse_lone_surrogates
from gpt2tg.reading.table_row import Notify, TableError, TableRow, bounded_lines, notify_empty, row_or_empty

# The columns are those of the first rows, this many of them.
HEAD_ROWS = 100

HOW_TO_WRITE = 'write it like {"text": "..."}'


def read_jsonl_rows(
    file: TextIO, choice: ColumnChoice, notify: Notify, conversations: Conversations | None = None
) -> Iterator[TableRow]:
    """Yield the rows of a jsonl file. A row that lacks the chosen column is empty.

    Args:
        conversations: how conversations become text; None if lists of messages are refused.

    Raises:
        TableError: a line is not a JSON object, no column can be chosen, or most rows lack it.
    """
    objects = _objects(file)
    head = list(islice(objects, HEAD_ROWS))
    if not head:
        return
    available = [*dict.fromkeys(name for _, row in head for name in row)]
    columns = choice.by_name(available) or choice.only_one(available)
    if not columns:
        raise choice.error(available)
    may_have_lists = conversations is not None and len(columns) == 1
    has_lists = may_have_lists and any(isinstance(row.get(columns[0]), list) for _, row in head)
    if conversations is not None and (has_lists or are_instructions(columns)):
        notify(reading_notice(columns, conversations.template_name()))
    else:
        notify(reading_notice(columns))
    yield from _select(chain(head, objects), columns, has_lists, notify)


def _select(
    objects: Iterator[tuple[int, dict[str, Any]]], columns: Columns, has_lists: bool, notify: Notify
) -> Iterator[TableRow]:
    """Yield the chosen columns of each row.

    Args:
        has_lists: whether the column holds conversations.

    Raises:
        TableError: a value is not what the column holds, strings or conversations, or most rows lack the column.
    """
    rows = empty = unanswered = lacking = 0
    example = ""
    for line, row in objects:
        rows += 1
        if columns[-1] not in row:
            lacking += 1
            example = example or f"line {line}, which has {join_names(row)}"
            yield TableRow(line, "", "")
            continue
        found = _row(line, row, columns, has_lists)
        is_list = has_lists and row[columns[0]] is not None
        empty += not found.text and not is_list
        unanswered += not found.text and is_list
        yield found
    if lacking:
        missing = f"no {join_names(columns[-1:])} in {lacking:,} of {rows:,} rows, such as {example}"
        if 2 * lacking > rows:
            raise TableError(f"has {missing}: name the column of the text with --text_column, or fix these rows")
        notify(f"skipped rows with {missing}")
    if unanswered == rows > 0:
        raise TableError(f"has no conversation with an answer: each needs a message whose role is {ASSISTANT}")
    notify_empty(empty, notify)
    notify_empty(unanswered, notify, "an answer")


def _row(line: int, row: dict[str, Any], columns: Columns, has_lists: bool) -> TableRow:
    if has_lists and row[columns[0]] is not None:
        return conversation_row(line, read_messages(row[columns[0]], columns[0], line))
    *prompt, text = (_string(row, column, line) for column in columns)
    if are_instructions(columns):
        return instruction_row(line, (*prompt, text))
    refuse_quoted_messages(text, columns, line)
    return row_or_empty(line, "".join(prompt), text)


def _objects(file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the object on each line that is not blank, with the number of the line."""
    if isinstance(file, ParsedRows):
        yield from file
        return
    is_first = True
    for number, line in enumerate(bounded_lines(file), start=1):
        if not line.strip():
            continue
        if is_first and line.strip() in ("[", "{"):
            raise TableError(
                f"line {number} begins JSON that spans several lines: write each object on one line, "
                f"for instance with: jq -c '{'.[]' if line.strip() == '[' else '.'}'"
            )
        is_first = False
        try:
            row = parse_json(line.rstrip("\r\n"))
        except ValueError as error:
            raise TableError(f"line {number} {error}: {HOW_TO_WRITE}") from None
        if not isinstance(row, dict):
            is_list = isinstance(row, list) and row and isinstance(row[0], dict)
            way_out = "write each object on a line of its own, for instance with: jq -c '.[]'"
            raise TableError(f"line {number} is not a JSON object: {way_out if is_list else HOW_TO_WRITE}")
        yield number, row


def _string(row: dict[str, Any], column: str, line: int) -> str:
    """Return a value that must be a string; an empty one if it is missing or null."""
    text = row.get(column)
    if text is None:
        return ""
    if isinstance(text, list) and any(isinstance(part, dict) for part in text):
        raise TableError(f"line {line}: {column} is a conversation, expected a text")
    if not isinstance(text, str):
        raise TableError(f"line {line}: {column} is {str(text)[:40]}, expected a string in quotes")
    try:
        refuse_lone_surrogates(text)
    except ValueError as error:
        raise TableError(f"line {line}: {column} {error}") from None
    return text
