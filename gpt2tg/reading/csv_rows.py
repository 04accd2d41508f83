"""Read the rows of csv and tsv files with Python's csv module, and check that the table is well formed."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from itertools import chain
from typing import TextIO

from gpt2tg.reading import table_row
from gpt2tg.reading.columns import (
    ColumnChoice,
    Columns,
    are_instructions,
    join_names,
    only_column,
    parse_header,
    reading_notice,
)
from gpt2tg.reading.conversations import Conversations, instruction_row, refuse_quoted_messages
from gpt2tg.reading.delimiters import DELIMITER_NAMES, declared_delimiter, detect_delimiter, fits, is_blank
from gpt2tg.reading.file_types import is_web_page
from gpt2tg.reading.table_row import Notify, TableError, TableRow, bounded_lines, notify_empty, row_or_empty

# The delimiter is detected from this many lines or characters, whichever is reached first.
HEAD_LINES, HEAD_CHARACTERS = 500, 1 << 18

HOW_TO_QUOTE = 'write a text with quotes like "so ""quoted"" here"'

# The line below the column names of a Markdown table.
MARKDOWN_RULE = re.compile(r"\s*\|?(?:\s*:?-{3,}:?\s*\|)+(?:\s*:?-{3,}:?)?\s*")

# A quote after a space: csv would make it part of the text. Two quotes together may be a quoted quote.
QUOTE_AFTER_SPACE = r'(?:^|{delimiter})[ \t]+"(?!")'


def read_csv_rows(
    file: TextIO, suffix: str, choice: ColumnChoice, notify: Notify, conversations: Conversations | None = None
) -> Iterator[TableRow]:
    """Yield the rows of a csv or tsv file; the delimiter is detected.

    Args:
        file: opened with `newline=""`.
        suffix: `.csv` or `.tsv`: which delimiter to prefer.
        conversations: how instructions become text, if their columns are read.

    Raises:
        TableError: a row does not fit the column names, or no column can be chosen.
    """
    csv.field_size_limit(table_row.MAX_FIELD_CHARACTERS)
    lines = bounded_lines(file)
    head, delimiter, skipped = _skip_to_header(_read_head(lines))
    if not head:
        return
    _refuse_other_formats(head, line=skipped + 1)
    if delimiter is None:
        delimiter = detect_delimiter(head, "\t" if suffix == ".tsv" else ",", lambda names: _has_wanted(choice, names))
    records = _records(chain(head, lines), delimiter, skipped)
    first = next(records, None)
    if first is None:
        return
    line, header = first
    names = parse_header(header, line)
    columns = choice.by_name(names) or only_column(choice, names, line, _rows_below(head, delimiter))
    of_several = f" (of {join_names(names)}; {_delimiter_name(delimiter)} between them)" if len(names) > 1 else ""
    has_instructions = conversations is not None and are_instructions(columns)
    template = conversations.template_name() if conversations is not None and has_instructions else None
    notify(reading_notice(columns, template) + of_several)
    # Extra empty values are ignored, unless the text is the last column: they may come from an unquoted comma in it.
    width = len(header) if names[-1] in columns else sys.maxsize
    yield from _select(records, names, columns, width, delimiter, notify)


def _select(
    records: Iterator[tuple[int, list[str]]],
    names: list[str],
    columns: Columns,
    max_values: int,
    delimiter: str,
    notify: Notify,
) -> Iterator[TableRow]:
    """Yield the chosen columns of each row.

    Raises:
        TableError: a row has too few values for the column names, or too many.
    """
    places = [names.index(column) for column in columns]
    has_instructions, empty = are_instructions(columns), 0
    for line, values in records:
        if is_blank(values) and len(values) < len(names):
            continue
        if not fits(values, len(names)) or len(values) > max_values:
            raise TableError(f"line {line}: {_width_error(len(values), len(names), _delimiter_name(delimiter))}")
        *prompt, text = (values[place] for place in places)
        refuse_quoted_messages(text, columns, line)
        row = instruction_row(line, (*prompt, text)) if has_instructions else row_or_empty(line, "".join(prompt), text)
        empty += not row.text
        yield row
    notify_empty(empty, notify)


def _read_head(lines: Iterator[str]) -> list[str]:
    head: list[str] = []
    size = 0
    for line in lines:
        head.append(line)
        size += len(line)
        if len(head) >= HEAD_LINES or size >= HEAD_CHARACTERS:
            break
    return head


def _skip_to_header(head: list[str]) -> tuple[list[str], str | None, int]:
    """Skip blank lines and a declaration like `sep=;`.

    Returns:
        The other lines, the declared delimiter, and how many lines were skipped.
    """
    start = 0
    while start < len(head) and not head[start].strip():
        start += 1
    delimiter = declared_delimiter(head[start]) if start < len(head) else None
    start += delimiter is not None
    return head[start:], delimiter, start


def _refuse_other_formats(head: list[str], line: int) -> None:
    """Refuse a file whose first lines are not those of a csv.

    Raises:
        TableError: it is JSON, a web page, or a Markdown table.
    """
    first = head[0]
    if first.lstrip().startswith(("{", "[")):
        raise TableError(f"line {line} is JSON, not a line of column names: name the file .jsonl")
    if is_web_page(first):
        raise TableError("is a web page, not a table: download the table itself")
    if any(MARKDOWN_RULE.fullmatch(row) for row in head[1:2]):
        raise TableError(f"line {line + 1} belongs to a Markdown table: export the table as .csv")


def _has_wanted(choice: ColumnChoice, names: list[str]) -> bool:
    try:
        return bool(choice.by_name(names))
    except TableError:
        return True  # several match: the error is raised once the delimiter is settled


def _records(lines: Iterator[str], delimiter: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the values of each row that is not blank, with the number of the line that it begins in."""
    read: list[str] = []  # the lines of the current row

    def recorded() -> Iterator[str]:
        for line in lines:
            read.append(line)
            yield line

    reader = csv.reader(recorded(), delimiter=delimiter, strict=True)
    late_quote = re.compile(QUOTE_AFTER_SPACE.format(delimiter=re.escape(delimiter)))
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
            raise TableError(f"line {begin}: a space before the opening quote makes it part of the text: remove it")
        if row:
            yield begin, row


def _csv_error(error: str, begin: int, line: int) -> str:
    """Return what is wrong with a row, from the text of a csv.Error: Python has one class for all of them."""
    since = "" if begin == line else f" in the row that begins in line {begin}"
    if "unexpected end of data" in error:
        return f"line {begin}: the row that begins here has a quote that is not closed; {HOW_TO_QUOTE}"
    if "expected after" in error:
        return f"line {line}: a quote is not doubled or not closed{since}; {HOW_TO_QUOTE}"
    if "field limit" in error:
        return (
            f"line {begin}: a text is longer than {table_row.MAX_FIELD_CHARACTERS:,} characters; "
            "check that a quote that opens here is closed"
        )
    return f"line {line}: {error}{since}"


def _rows_below(head: list[str], delimiter: str) -> list[str]:
    """Return the lines below the column names that are not blank, without delimiters at their ends."""
    return [line.strip(f"\r\n{delimiter}") for line in head[1:] if line.strip()]


def _delimiter_name(delimiter: str) -> str:
    return DELIMITER_NAMES.get(delimiter, delimiter)


def _width_error(values: int, columns: int, delimiters: str) -> str:
    """Return what is wrong with a row of too many or too few values, and what to do."""
    if values < columns:
        way_out = "put texts with line breaks in quotes, and write every value, also empty ones"
    else:
        way_out = f"put texts that contain {delimiters} in quotes"
    if columns == 1:
        way_out += ", or name the file .txt to read each line as a text"
    count = "1 value" if values == 1 else f"{values} values"
    return f"{count} for {columns} column{'' if columns == 1 else 's'}; {way_out}"
