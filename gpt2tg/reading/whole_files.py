"""Texts in a file that is named: plain, or in the column of a table, read just as for training.

What reads a file once and holds it in memory reads it here: prompts, references, lines to score. A pipe will do too.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2tg.errors import UserError
from gpt2tg.reading.columns import FOR_LEARNING, Columns, TableError
from gpt2tg.reading.file_types import HEAD_BYTES, check_text_column, is_table, misnamed, require_plain
from gpt2tg.reading.plain_text import decode_utf8, pieces
from gpt2tg.reading.strict_json import half_character, parse_json, refuse_half_characters
from gpt2tg.reading.tables import JSON_SUFFIXES, Row, read_rows

__all__ = [
    "check_text_column",
    "examples_of",
    "is_json_lines",
    "is_table",
    "json_line",
    "read_examples",
    "read_lines",
    "read_stdin",
    "read_table",
    "read_text",
]

Say = Callable[[str], None]

# The columns that prompts are in, where none is named.
FOR_PROMPTS = (("prompt",), ("text",))


def read_text(path: Path, option: str | None, say: Say = lambda _: None) -> str:
    """The text of a file, without a byte-order mark, its lines ending in LF.

    Args:
        option: the flag that the path came from, for messages; None where it came from no flag.
        say: takes a line on what looks wrong.

    Raises:
        UserError: the file cannot be read, or is not UTF-8 text.
    """
    text = _content(path, option)
    if warning := misnamed(path, text[:HEAD_BYTES].encode()):
        say(f"{path}: {warning}")
    return text.replace("\r\n", "\n")


def _content(path: Path, option: str | None) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", option) from None
    require_plain(path, content[:HEAD_BYTES], option)
    return decode_utf8(content, path, option)


def read_lines(path: Path, option: str | None, say: Say = lambda _: None) -> list[str]:
    """The lines of a text file, as `read_text` has them."""
    return read_text(path, option, say).split("\n")


def read_stdin(option: str) -> str:
    """All that comes on stdin, without a byte-order mark.

    Raises:
        UserError: it is not UTF-8 text.
    """
    text = sys.stdin.read().removeprefix("\ufeff")
    for number, line in enumerate(text.split("\n"), start=1):
        if "\0" in line or half_character(line):  # bytes that are no text
            raise UserError(f"- is not UTF-8: line {number} of stdin", option)
    return text


def is_json_lines(path: Path) -> bool:
    """Whether a file holds an object of JSON a line."""
    return path.suffix.lower() in JSON_SUFFIXES


def read_table(
    path: Path, option: str, text_column: str | None, say: Say, wanted: tuple[Columns, ...] = FOR_LEARNING
) -> list[Row]:
    """The rows of a table that have a text.

    Args:
        text_column: the column of the text; None takes the first of `wanted` that is there, or the only column.
        say: takes a line on which column is read, and on rows that are passed over.

    Raises:
        UserError: the file cannot be read, or is no table; names file and line.
    """

    def about(notice: str) -> None:
        say(f"{path}: {notice}")

    file = io.StringIO(_content(path, option), newline="")
    try:
        rows = read_rows(file, path.suffix.lower(), text_column, about, wanted)
        return [row for row in rows if row.text]
    except TableError as error:
        raise UserError(error.about(path), option) from None


def read_examples(path: Path, option: str, examples: str, text_column: str | None, say: Say) -> list[str]:
    """The examples of a file: each row of a table, its prompt before its text; of plain text as `examples` says.

    Raises:
        UserError: the file cannot be read, or holds no text.
    """
    if is_table(path):
        found = [row.prompt + row.text for row in read_table(path, option, text_column, say)]
    else:
        found = examples_of(read_text(path, option, say), examples)
    if not found:
        raise UserError(f"{path} holds no text", option)
    return found


def examples_of(text: str, examples: str) -> list[str]:
    """The examples of a plain text, as they are for training: lines, paragraphs, or the whole."""
    found, parts = [], []
    for piece in pieces(io.StringIO(text, newline="\n"), examples):
        parts.append(piece.text)
        if piece.ends:
            found.append("".join(parts))
            parts.clear()
    return found


def json_line(line: str, where: str, option: str | None, way_out: str) -> dict[str, Any]:
    """The object on a line of JSON.

    Args:
        where: file and line, for messages.
        way_out: how such a line is written.

    Raises:
        UserError: it is none, or holds what cannot be written as text.
    """
    try:
        found = parse_json(line)
        if not isinstance(found, dict):
            raise ValueError("is no JSON object")
        refuse_half_characters(found)
    except ValueError as error:
        raise UserError(f"{where} {error}: {way_out}", option) from None
    return found
