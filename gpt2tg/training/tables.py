"""Reading texts from tables, a row at a time: csv, tsv, and jsonl with an object a line."""

from __future__ import annotations

import csv
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TextIO

from gpt2tg.training.delimiters import SPOKEN, declared_delimiter, find_delimiter, fits, is_blank
from gpt2tg.training.json_text import parse_json, refuse_half_characters
from gpt2tg.training.kinds import is_web_page
from gpt2tg.training.text import Piece

JSON_SUFFIXES = (".jsonl", ".ndjson")

# Of a csv so many lines, or characters, tell what separates its values.
HEAD_LINES, HEAD_CHARACTERS = 500, 1 << 18

# Of a jsonl so many rows tell what columns there are.
HEAD_ROWS = 100

# Python's own limit for csv refuses a long story; without any, a quote that is never closed would fill the memory.
LONGEST_FIELD = 1 << 27

HOW_TO_QUOTE = 'a text with quotes is written "so ""quoted"" here"'
HOW_TO_WRITE_JSON = 'write it like {"text": "..."}'

# The columns to read where none is named: the first of these that are there. Of two the last is learned.
FOR_LEARNING = (("prompt", "completion"), ("text",))

# What people call the only column of a table. Any other first line may be the first text of a file without names.
NAMES_IN_USE = """
    text texts content contents body document doc story stories poem poems poetry lyrics song verse verses quote quotes
    quotation sentence sentences line lines paragraph passage chapter article post comment review tweet message email
    headline title titles name names word words joke jokes recipe description summary abstract question answer prompt
    completion response output input transcript caption note notes value data essay letter dialogue example examples
    texte phrase texto frase testo frasi tekst satz sätze geschichte gedicht
"""
USUAL_NAMES = frozenset(NAMES_IN_USE.split())

# In characters: the texts below a name are so many times as long.
TEXT_TO_NAME = 3

# What a text has and the name of a column has not.
MARKS_OF_TEXT = re.compile(r"""[\s,.!?;:"“”„«»…。、！？<>{}()\[\]]""")


# The line below the names of a table in Markdown.
MARKDOWN_RULE = re.compile(r"\s*\|?(?:\s*:?-{3,}:?\s*\|)+(?:\s*:?-{3,}:?)?\s*")


class BadRecord(ValueError):
    """A table that cannot be read; the message names the line or the columns."""

    def about(self, path: Path) -> str:
        """The message, with the file it is about."""
        return f"{path}, {self}" if str(self).startswith("line") else f"{path} {self}"


class Row(NamedTuple):
    """The text of a row, and the prompt before it where the table has one. Both are empty in a row without text."""

    line: int
    prompt: str
    text: str


Say = Callable[[str], None]
Columns = tuple[str, ...]


def record_pieces(file: TextIO, suffix: str, text_column: str | None, say: Say = lambda _: None) -> Iterator[Piece]:
    """The text of a table, row by row. A row without text gives one empty piece.

    Args:
        file: opened with `newline=""`.
        suffix: of the file's name, one of `SUFFIXES`.
        text_column: where the text is. None takes `prompt` and `completion` where both are there, of which the
            completion alone is learned, then `text`, then the only column.
        say: takes a line on which column is read, and on what is passed over.

    Raises:
        BadRecord: a row that is none, or no column to read from.
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
        BadRecord: a row that is none, no column to read from, or one that most rows lack.
    """
    choice = _Choice(text_column, wanted)
    return _json_rows(file, choice, say) if suffix in JSON_SUFFIXES else _table_rows(file, suffix, choice, say)


# ---- which column ----


class _Choice(NamedTuple):
    """How the columns to read are chosen."""

    text_column: str | None
    wanted: tuple[Columns, ...]

    def named(self, there: list[str]) -> Columns:
        """The columns that are asked for by name, as the table writes them; none where they are not there."""
        for columns in self.wanted if self.text_column is None else ((self.text_column,),):
            found = tuple(name for column in columns for name in _alike(column, there)[:1])
            if len(found) == len(columns):
                return found
        return ()

    def only(self, there: list[str]) -> Columns:
        """The only column, where none is asked for."""
        names = [name for name in there if _plain(name)]
        return tuple(names) if self.text_column is None and len(names) == 1 else ()

    def refusal(self, there: list[str], hint: str = "") -> BadRecord:
        if self.text_column is not None:
            return BadRecord(f"has no column {self.text_column}: it has {_listed(there)}")
        return BadRecord(f"has the columns {_listed(there)}: say with --text_column which of them holds the text{hint}")


def _alike(column: str, there: list[str]) -> list[str]:
    """The columns that go by a name: written just so, or but for capitals and blanks.

    Raises:
        BadRecord: several do.
    """
    if column in there:
        return [column]
    found = [name for name in there if _plain(name) == _plain(column)]
    if len(found) > 1:
        raise BadRecord(f"has the columns {_listed(found)}: say with --text_column which of them holds the text")
    return found


def _plain(name: str) -> str:
    return name.strip("\ufeff\u200b \t\r\n\xa0").casefold()


def _listed(columns: Iterable[str]) -> str:
    names = ["".join(sign for sign in name if sign.isprintable())[:40] for name in columns if _plain(name)]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "none"


def _announced(columns: Columns) -> str:
    names = " and ".join(f'"{_listed([name])}"' for name in columns)
    return f"reading the column{'' if len(columns) == 1 else 's'} {names}"


# ---- csv and tsv ----


def _table_rows(file: TextIO, suffix: str, choice: _Choice, say: Say) -> Iterator[Row]:
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
    line, header = next(records)
    names = _column_names(header, line)
    columns = choice.named(names) or _only_column(choice, names, line, _rows_below(head, delimiter))
    say(_announced(columns) + (f" (of {_listed(names)}; {_spoken(delimiter)} between them)" if len(names) > 1 else ""))
    *prompt, text = (names.index(column) for column in columns)
    # What is left empty at the end of a row is no text, unless it follows the text: that may end in a comma.
    longest = len(header) if len(names) - 1 in (*prompt, text) else sys.maxsize
    empty = 0
    for line, row in records:
        if is_blank(row) and len(row) < len(names):
            continue
        if not fits(row, len(names)) or len(row) > longest:
            raise BadRecord(f"line {line}: {_misfit(len(row), len(names), _spoken(delimiter))}")
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
            raise BadRecord(f"line {number} is longer than {LONGEST_FIELD:,} characters: write a row a line")
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
        BadRecord: JSON, a web page, or a table of Markdown.
    """
    first = head[0]
    if first.lstrip().startswith(("{", "[")):
        raise BadRecord(f"line {line} is JSON, not a line of column names: name the file .jsonl")
    if is_web_page(first):
        raise BadRecord("is a web page, not a table: download the table itself")
    if any(MARKDOWN_RULE.fullmatch(row) for row in head[1:2]):
        raise BadRecord(f"line {line + 1} is the rule of a Markdown table: export the table as .csv")


def _has(choice: _Choice, names: list[str]) -> bool:
    try:
        return bool(choice.named(names))
    except BadRecord:
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
            raise BadRecord(_csv_error(str(error), begin, reader.line_num + skipped)) from None
        end = reader.line_num + skipped
        if any(value[:1] in " \t" and value.lstrip()[:1] == '"' for value in row) and late_quote.search("".join(read)):
            raise BadRecord(f"line {begin}: a quote after a blank would be part of the text: remove the blank")
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


def _column_names(row: list[str], line: int) -> list[str]:
    """The names of the columns. Those without a name at the end are none.

    Raises:
        BadRecord: no names, or two columns of one name.
    """
    names = [name.strip("\ufeff \t\r\n\xa0") for name in row]
    while names and not _plain(names[-1]):
        names.pop()
    if not names:
        raise BadRecord(f"line {line} has no names of columns: write them above the first row")
    for name in names:
        if _plain(name) and names.count(name) > 1:
            raise BadRecord(f"line {line}: two columns are named {_listed([name])}: rename or remove one")
    return names


def _only_column(choice: _Choice, names: list[str], line: int, texts: list[str]) -> Columns:
    """The only column, where its name is one, and not the first text of a file without a line of names.

    Raises:
        BadRecord: there are several columns, or the first line seems to be a text.
    """
    columns = choice.only(names)
    if not columns:
        raise choice.refusal(names, f"; if line {line} is no line of names, write one above it")
    (name,) = columns
    if _plain(name) in USUAL_NAMES:
        return columns
    if MARKS_OF_TEXT.search(name) or (texts and median(map(len, texts)) < TEXT_TO_NAME * len(name)):
        as_flag = shlex.quote(name) if len(name) <= 40 else "NAME"
        raise BadRecord(
            f'line {line}: is "{_listed([name])}" the name of the column, or the first text? '
            f"Write a line above it that says text, or name the file .txt, or say --text_column {as_flag}"
        )
    return columns


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


def _json_rows(file: TextIO, choice: _Choice, say: Say) -> Iterator[Row]:
    objects = _json_objects(file)
    head = list(islice(objects, HEAD_ROWS))
    if not head:
        return
    there = [*dict.fromkeys(name for _, row in head for name in row)]
    columns = choice.named(there) or choice.only(there)
    if not columns:
        raise choice.refusal(there)
    say(_announced(columns))
    rows = empty = lacking = 0
    example = ""
    for line, row in chain(head, objects):
        rows += 1
        if columns[-1] not in row:
            lacking += 1
            example = example or f"line {line}, which has {_listed(row)}"
            continue
        *prompt, text = (_json_text(row, column, line) for column in columns)
        empty += not text.strip()
        yield Row(line, "".join(prompt), text) if text.strip() else Row(line, "", "")
    if lacking:
        missing = f"no {_listed(columns[-1:])} in {lacking:,} of {rows:,} rows, such as {example}"
        if 2 * lacking > rows:
            raise BadRecord(f"has {missing}: say with --text_column which column holds the text, or mend these rows")
        say(f"{missing}: passed over")
    _say_empty(empty, say)


def _json_objects(file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    is_first = True
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        if is_first and line.strip() in ("[", "{"):
            raise BadRecord(
                f"line {number} begins JSON that goes over several lines: write each object on a line of its own, "
                f"for instance with: jq -c '{'.[]' if line.strip() == '[' else '.'}'"
            )
        is_first = False
        try:
            row = parse_json(line.rstrip("\r\n"))
        except ValueError as error:
            raise BadRecord(f"line {number} {error}: {HOW_TO_WRITE_JSON}") from None
        if not isinstance(row, dict):
            way_out = "write each of its objects on a line of its own, for instance with: jq -c '.[]'"
            is_list = isinstance(row, list) and row and isinstance(row[0], dict)
            raise BadRecord(f"line {number} is no JSON object: {way_out if is_list else HOW_TO_WRITE_JSON}")
        yield number, row


def _json_text(row: dict[str, Any], column: str, line: int) -> str:
    text = row.get(column)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise BadRecord(f"line {line}: {column} is {str(text)[:40]}, expected a text")
    try:
        refuse_half_characters(text)
    except ValueError as error:
        raise BadRecord(f"line {line}: {column} {error}") from None
    return _unix(text)


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")


def _say_empty(empty: int, say: Say) -> None:
    if empty:
        say(f"{empty:,} row{'' if empty == 1 else 's'} without text passed over")
