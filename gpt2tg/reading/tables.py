"""Reading texts from tables, a row at a time: csv, tsv, and jsonl with an object a line."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, NamedTuple, TextIO

from gpt2tg.reading.columns import (
    FOR_LEARNING,
    Choice,
    Columns,
    Say,
    TableError,
    announced,
    column_names,
    listed,
    only_column,
)
from gpt2tg.reading.delimiters import SPOKEN, declared_delimiter, find_delimiter, fits, is_blank
from gpt2tg.reading.file_types import is_web_page
from gpt2tg.reading.plain_text import Piece
from gpt2tg.reading.strict_json import parse_json, refuse_half_characters

JSON_SUFFIXES = (".jsonl", ".ndjson")

# Of a csv so many lines, or characters, tell what separates its values.
HEAD_LINES, HEAD_CHARACTERS = 500, 1 << 18

# Of a jsonl so many rows tell what columns there are.
HEAD_ROWS = 100

# Python's own limit for csv refuses a long story; without any, a quote that is never closed would fill the memory.
LONGEST_FIELD = 1 << 27

HOW_TO_QUOTE = 'a text with quotes is written "so ""quoted"" here"'
HOW_TO_WRITE_JSON = 'write it like {"text": "..."}'

# The line below the names of a table in Markdown.
MARKDOWN_RULE = re.compile(r"\s*\|?(?:\s*:?-{3,}:?\s*\|)+(?:\s*:?-{3,}:?)?\s*")


class Row(NamedTuple):
    """The text of a row, and the prompt before it where the table has one. Both are empty in a row without text."""

    line: int
    prompt: str
    text: str


def record_pieces(file: TextIO, suffix: str, text_column: str | None, say: Say = lambda _: None) -> Iterator[Piece]:
    """The text of a table, row by row. A row without text gives one empty piece.

    Args:
        file: opened with `newline=""`.
        suffix: of the file's name, one of `SUFFIXES`.
        text_column: where the text is. None takes `prompt` and `completion` where both are there, of which the
            completion alone is learned, then `text`, then the only column.
        say: takes a line on which column is read, and on what is passed over.

    Raises:
        TableError: a row that is none, or no column to read from.
    """
    for row in read_rows(file, suffix, text_column, say):
        if row.prompt:
            yield Piece(row.prompt, ends=False, learned=False)
        yield Piece(row.text, True)


def read_rows(
    file: TextIO, suffix: str, text_column: str | None, say: Say, wanted: tuple[Columns, ...] = FOR_LEARNING
) -> Iterator[Row]:
    """The rows of a table with their texts.

    Args:
        wanted: columns to read where none is named, the best first. Without any of them it is the only column.

    Raises:
        TableError: a row that is none, no column to read from, or one that most rows lack.
    """
    choice = Choice(text_column, wanted)
    return _json_rows(file, choice, say) if suffix in JSON_SUFFIXES else _table_rows(file, suffix, choice, say)


# ---- csv and tsv ----


def _table_rows(file: TextIO, suffix: str, choice: Choice, say: Say) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)
    lines = _lines(file)
    head = _head(lines)
    skipped = len(head)
    while head and not head[0].strip():
        head.pop(0)
    delimiter = declared_delimiter(head[0]) if head else None
    if delimiter is not None:
        head.pop(0)
    skipped -= len(head)
    if not head:
        return
    _require_table(head, skipped + 1)
    usual = "\t" if suffix == ".tsv" else ","
    delimiter = delimiter or find_delimiter(head, usual, lambda names: _has(choice, names))
    records = _records(chain(head, lines), delimiter, skipped)
    first = next(records, None)
    if first is None:
        return
    line, header = first
    names = column_names(header, line)
    columns = choice.named(names) or only_column(choice, names, line, _rows_below(head, delimiter))
    say(announced(columns) + (f" (of {listed(names)}; {_spoken(delimiter)} between them)" if len(names) > 1 else ""))
    *prompt, text = (names.index(column) for column in columns)
    # What is left empty at the end of a row is no text, unless it follows the text: that may end in a comma.
    longest = len(header) if len(names) - 1 in (*prompt, text) else sys.maxsize
    empty = 0
    for line, row in records:
        if is_blank(row) and len(row) < len(names):
            continue
        if not fits(row, len(names)) or len(row) > longest:
            raise TableError(f"line {line}: {_misfit(len(row), len(names), _spoken(delimiter))}")
        found = Row(line, _unix(row[prompt[0]]) if prompt else "", _unix(row[text]))
        empty += not found.text.strip()
        yield found if found.text.strip() else Row(line, "", "")
    _say_empty(empty, say)


def _lines(file: TextIO) -> Iterator[str]:
    """The lines of a file, none so long that it fills the memory."""
    number = 0
    while line := file.readline(LONGEST_FIELD):
        number += 1
        if len(line) == LONGEST_FIELD and not line.endswith(("\n", "\r")):
            raise TableError(f"line {number} is longer than {LONGEST_FIELD:,} characters: write a row a line")
        yield line


def _head(lines: Iterator[str]) -> list[str]:
    found, size = [], 0
    for line in lines:
        found.append(line)
        size += len(line)
        if len(found) >= HEAD_LINES or size >= HEAD_CHARACTERS:
            break
    return found


def _require_table(head: list[str], line: int) -> None:
    """Refuse what is something else by its first lines.

    Raises:
        TableError: JSON, a web page, or a table of Markdown.
    """
    first = head[0]
    if first.lstrip().startswith(("{", "[")):
        raise TableError(f"line {line} is JSON, not a line of column names: name the file .jsonl")
    if is_web_page(first):
        raise TableError("is a web page, not a table: download the table itself")
    if any(MARKDOWN_RULE.fullmatch(row) for row in head[1:2]):
        raise TableError(f"line {line + 1} is the rule of a Markdown table: export the table as .csv")


def _has(choice: Choice, names: list[str]) -> bool:
    try:
        return bool(choice.named(names))
    except TableError:
        return True


def _records(lines: Iterator[str], delimiter: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """The rows of a csv, each with the line that it begins in. Blank lines are none."""
    read: list[str] = []  # the lines of the row
    reader = csv.reader((read.append(line) or line for line in lines), delimiter=delimiter, strict=True)
    late_quote = re.compile(rf'(?:^|{re.escape(delimiter)})[ \t]+"(?!")')
    end = skipped
    while True:
        begin = end + 1
        read.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise TableError(_csv_error(str(error), begin, reader.line_num + skipped)) from None
        end = reader.line_num + skipped
        if any(value[:1] in " \t" and value.lstrip()[:1] == '"' for value in row) and late_quote.search("".join(read)):
            raise TableError(f"line {begin}: a quote after a blank would be part of the text: remove the blank")
        if row:
            yield begin, row


def _csv_error(error: str, begin: int, line: int) -> str:
    """What is wrong with a row. Python has one class for all errors of csv."""
    since = "" if begin == line else f" in the row that begins in line {begin}"
    if "unexpected end of data" in error:
        return f"line {begin}: the row that begins here has a quote that is not closed; {HOW_TO_QUOTE}"
    if "expected after" in error:
        return f"line {line}: a quote that is not doubled, or not closed{since}; {HOW_TO_QUOTE}"
    if "field limit" in error:
        return f"line {begin}: a text of more than {LONGEST_FIELD:,} characters; a quote that opens here may not close"
    return f"line {line}: {error}{since}"


def _rows_below(head: list[str], delimiter: str) -> list[str]:
    """The texts of the first rows, for how long they are."""
    return [line.strip(f"\r\n{delimiter}") for line in head[1:] if line.strip()]


def _spoken(delimiter: str) -> str:
    return SPOKEN.get(delimiter, delimiter)


def _misfit(values: int, columns: int, delimiters: str) -> str:
    """What is wrong with a row of too many or too few values, and what to do."""
    if values < columns:
        way_out = "put a text with line breaks in quotes, and write all values, also those that are empty"
    else:
        way_out = f"put texts that contain {delimiters} in quotes"
    if columns == 1:
        way_out += ", or name the file .txt, where each line is a text"
    count = "1 value" if values == 1 else f"{values} values"
    return f"{count} for {columns} column{'' if columns == 1 else 's'}; {way_out}"


# ---- jsonl ----


def _json_rows(file: TextIO, choice: Choice, say: Say) -> Iterator[Row]:
    objects = _json_objects(file)
    head = list(islice(objects, HEAD_ROWS))
    if not head:
        return
    there = [*dict.fromkeys(name for _, row in head for name in row)]
    columns = choice.named(there) or choice.only(there)
    if not columns:
        raise choice.refusal(there)
    say(announced(columns))
    rows = empty = lacking = 0
    example = ""
    for line, row in chain(head, objects):
        rows += 1
        if columns[-1] not in row:
            lacking += 1
            example = example or f"line {line}, which has {listed(row)}"
            yield Row(line, "", "")
            continue
        *prompt, text = (_json_text(row, column, line) for column in columns)
        empty += not text.strip()
        yield Row(line, "".join(prompt), text) if text.strip() else Row(line, "", "")
    if lacking:
        missing = f"no {listed(columns[-1:])} in {lacking:,} of {rows:,} rows, such as {example}"
        if 2 * lacking > rows:
            raise TableError(f"has {missing}: say with --text_column which column holds the text, or mend these rows")
        say(f"{missing}: passed over")
    _say_empty(empty, say)


def _json_objects(file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    is_first = True
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        if is_first and line.strip() in ("[", "{"):
            raise TableError(
                f"line {number} begins JSON that goes over several lines: write each object on a line of its own, "
                f"for instance with: jq -c '{'.[]' if line.strip() == '[' else '.'}'"
            )
        is_first = False
        try:
            row = parse_json(line.rstrip("\r\n"))
        except ValueError as error:
            raise TableError(f"line {number} {error}: {HOW_TO_WRITE_JSON}") from None
        if not isinstance(row, dict):
            way_out = "write each of its objects on a line of its own, for instance with: jq -c '.[]'"
            is_list = isinstance(row, list) and row and isinstance(row[0], dict)
            raise TableError(f"line {number} is no JSON object: {way_out if is_list else HOW_TO_WRITE_JSON}")
        yield number, row


def _json_text(row: dict[str, Any], column: str, line: int) -> str:
    text = row.get(column)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise TableError(f"line {line}: {column} is {str(text)[:40]}, expected a text")
    try:
        refuse_half_characters(text)
    except ValueError as error:
        raise TableError(f"line {line}: {column} {error}") from None
    return _unix(text)


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")


def _say_empty(empty: int, say: Say) -> None:
    if empty:
        say(f"{empty:,} row{'' if empty == 1 else 's'} without text passed over")
