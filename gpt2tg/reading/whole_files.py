"""Read a whole file into memory: prompts, references, lines to score. The file may be a pipe.

The texts are the same that training reads from the file.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any, TextIO

from gpt2tg.errors import UserError
from gpt2tg.io import lfs
from gpt2tg.reading.columns import TRAINING_COLUMNS, Columns
from gpt2tg.reading.compressed import DamagedFileError, open_content, text_suffix
from gpt2tg.reading.file_types import HEAD_BYTES, format_warning, is_binary_table, is_table, require_plain_text
from gpt2tg.reading.parsed_rows import JSON_LINES, binary_rows, in_rows, json_rows
from gpt2tg.reading.plain_text import ExampleMode, pieces
from gpt2tg.reading.strict_json import lone_surrogate, parse_json, refuse_lone_surrogates
from gpt2tg.reading.table_row import Notify, TableError, TableRow
from gpt2tg.reading.table_rows import read_rows
from gpt2tg.reading.utf8 import decode_utf8

# The columns of a table of prompts to read if none is named, the best first.
PROMPT_COLUMNS: tuple[Columns, ...] = (("prompt",), ("text",))


def _ignore(notice: str) -> None:
    pass


def read_text(path: Path, option: str | None, notify: Notify = _ignore) -> str:
    """Return the text of a file, without a byte-order mark, with LF line breaks.

    Args:
        option: the flag that named the file, for errors; None if no flag did.
        notify: called with a warning if the file looks like another format.

    Raises:
        UserError: the file cannot be read, or is not UTF-8 text.
    """
    text = _decode(path, option)
    if warning := format_warning(path, text[:HEAD_BYTES].encode()):
        notify(f"{path}: {warning}")
    return text.replace("\r\n", "\n")


def _decode(path: Path, option: str | None) -> str:
    content = _read(path, option)
    require_plain_text(path, content[:HEAD_BYTES], option)
    return decode_utf8(content, path, option)


def _read(path: Path, option: str | None) -> bytes:
    try:
        with open_content(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", option) from None
    except DamagedFileError as error:
        lfs.refuse_pointer(path, option)
        raise UserError(f"{path} {error}", option) from None


def read_lines(path: Path, option: str | None, notify: Notify = _ignore) -> list[str]:
    """Return the lines of a text file without their ends. Arguments and errors are those of `read_text`."""
    return read_text(path, option, notify).split("\n")


def read_stdin(option: str) -> str:
    """Return all text on stdin, without a byte-order mark.

    Args:
        option: the flag whose value is `-`, for errors.

    Raises:
        UserError: stdin is not UTF-8 text.
    """
    text = sys.stdin.read().removeprefix("\ufeff")
    for number, line in enumerate(text.split("\n"), start=1):
        if "\0" in line or lone_surrogate(line):  # stdin decodes bytes that are not UTF-8 to lone surrogates
            raise UserError(f"-: line {number} of stdin is not UTF-8: save the text as UTF-8", option)
    return text


def read_table(
    path: Path,
    option: str,
    text_column: str | None,
    notify: Notify,
    preferred: tuple[Columns, ...] = TRAINING_COLUMNS,
) -> list[TableRow]:
    """Return the rows of a table that have a text.

    Args:
        option: the flag that named the file, for errors.
        text_column: the column of the text. None reads the first entry of `preferred` that the table has, or its only
            column.
        notify: called with the columns that are read, and with what is skipped.

    Raises:
        UserError: the file cannot be read, or is malformed; names file and line.
    """

    def notify_with_path(notice: str) -> None:
        notify(f"{path}: {notice}")

    file, suffix = _open_table(path, option)
    try:
        rows = read_rows(file, suffix, text_column, notify_with_path, preferred)
        return [row for row in rows if row.text]
    except TableError as error:
        raise UserError(in_rows(error, path).with_path(path), option) from None


def _open_table(path: Path, option: str) -> tuple[TextIO, str]:
    """Return the content of a table, and the suffix of the format to read it in."""
    suffix = text_suffix(path)
    if is_binary_table(path):
        content = _read(path, option)
        if lfs.begins_pointer(content[: lfs.HEAD_BYTES]):
            raise lfs.refusal(path, option)
        return binary_rows(io.BytesIO(content), path).as_file(), JSON_LINES
    file = io.StringIO(_decode(path, option), newline="")
    return (json_rows(file).as_file(), JSON_LINES) if suffix == ".json" else (file, suffix)


def read_examples(path: Path, option: str, mode: ExampleMode, text_column: str | None, notify: Notify) -> list[str]:
    """Return the examples of a file: the rows of a table, prompt and text joined, or those of plain text.

    Args:
        option: the flag that named the file, for errors.
        mode: what an example of plain text is.
        text_column: the column of the text of a table.

    Raises:
        UserError: the file cannot be read, or holds no text.
    """
    if is_table(path):
        examples = [row.prompt + row.text for row in read_table(path, option, text_column, notify)]
    else:
        examples = examples_of(read_text(path, option, notify), mode)
    if not examples:
        raise UserError(f"{path} holds no text: give a file with at least one example", option)
    return examples


def examples_of(text: str, mode: ExampleMode) -> list[str]:
    """Return the examples of a plain text, as training reads them: its lines, its paragraphs, or all of it."""
    examples: list[str] = []
    parts: list[str] = []
    for piece in pieces(io.StringIO(text, newline="\n"), mode):
        parts.append(piece.text)
        if piece.ends:
            examples.append("".join(parts))
            parts.clear()
    return examples


def parse_json_line(line: str, where: str, option: str | None, way_out: str) -> dict[str, Any]:
    """Return the object on a line of JSON.

    Args:
        where: file and line, for errors.
        option: the flag that named the file, for errors.
        way_out: how to write such a line, for errors.

    Raises:
        UserError: the line is not a JSON object, or has a string that cannot be written as UTF-8.
    """
    try:
        value = parse_json(line)
        if not isinstance(value, dict):
            raise ValueError("is not a JSON object")
        refuse_lone_surrogates(value)
    except ValueError as error:
        raise UserError(f"{where} {error}: {way_out}", option) from None
    return value
