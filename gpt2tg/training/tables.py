"""Reading examples from tables, a row at a time: csv, tsv, and jsonl with an object a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any, TextIO

from gpt2tg.training.text import Piece

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")

# Python's own limit for csv refuses a long story; without any, a quote that is never closed would fill the memory.
LONGEST_FIELD = 1 << 27

# What Python says of a quote that is not doubled, or never closed: it has one class for all errors of csv.
ABOUT_QUOTES = ("expected after", "unexpected end of data")
HOW_TO_QUOTE = 'a text with quotes is written "so ""quoted"" here"'


class BadRecord(ValueError):
    """A table that cannot be read; the message names the line or the columns."""


def record_pieces(file: TextIO, suffix: str, text_column: str | None) -> Iterator[Piece]:
    """The text of a table, row by row. A row without text gives one empty piece.

    Args:
        file: opened with `newline=""`.
        suffix: of the file's name, one of `SUFFIXES`.
        text_column: where the text is. None takes `prompt` and `completion` where both are there, of which the
            completion alone is learned, then `text`, then the only column.

    Raises:
        BadRecord: a row that is none, or no column to read from.
    """
    rows = _table_rows(file, "\t" if suffix == ".tsv" else ",") if suffix in (".csv", ".tsv") else _json_rows(file)
    columns: tuple[str, ...] = ()
    for line, row in rows:
        columns = columns or _choose_columns(list(row), text_column)
        *prompt, text = (_text_of(row, column, line) for column in columns)
        if not text.strip():
            yield Piece("", True)
            continue
        if prompt and prompt[0]:
            yield Piece(prompt[0], ends=False, learned=False)
        yield Piece(text, True)


def _table_rows(file: TextIO, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.DictReader(file, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        way_out = f"; {HOW_TO_QUOTE}" if any(words in str(error) for words in ABOUT_QUOTES) else ""
        raise BadRecord(f"line {reader.reader.line_num}: {error}{way_out}") from None


def _json_rows(file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip("\r\n"))
        except (ValueError, RecursionError) as error:
            place = f" at character {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            what = getattr(error, "msg", "too deep").removesuffix(" at")
            raise BadRecord(f'line {number} is no JSON ({what}{place}): write it like {{"text": "..."}}') from None
        if not isinstance(row, dict):
            raise BadRecord(f'line {number} is no JSON object: write it like {{"text": "..."}}')
        yield number, row


def _choose_columns(there: list[Any], text_column: str | None) -> tuple[str, ...]:
    if text_column is not None:
        if text_column in there:
            return (text_column,)
        raise BadRecord(f"has no column {text_column}: it has {_listed(there)}")
    if {"prompt", "completion"} <= set(there):
        return ("prompt", "completion")
    if "text" in there:
        return ("text",)
    if len(there) == 1:
        return (there[0],)
    raise BadRecord(f"has the columns {_listed(there)}: say with --text_column which of them holds the text")


def _listed(columns: list[Any]) -> str:
    names = [str(name) for name in columns if name is not None]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "none"


def _text_of(row: dict[str, Any], column: str, line: int) -> str:
    text = row.get(column)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise BadRecord(f"line {line}: {column} is {str(text)[:40]}, expected a text")
    return text.replace("\r\n", "\n")
